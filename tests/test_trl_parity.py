"The same model, data and seed give TRL 1.16.0's numbers, step by step; TRL runs live beside us."
import importlib.metadata, math, sys

import pytest, torch
from peft import LoraConfig

import dpo_nb
from dpo_nb.toy import load_toy_model, load_toy_pairs, load_toy_tokenizer, toy_path

METRICS = ['loss', 'grad_norm', 'learning_rate', 'epoch', 'num_tokens', 'entropy', 'mean_token_accuracy', 'logits/chosen', 'logits/rejected',
           'logps/chosen', 'logps/rejected', 'rewards/chosen', 'rewards/rejected', 'rewards/accuracies', 'rewards/margins']


pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason='TRL 1.16.0 needs Python 3.11')


def test_the_version_compared_with(): assert importlib.metadata.version('trl') == '1.16.0'


def train(lib, folder, data, evals=None, peft_config=None, **kw):
    "Log history of one run; the arguments are the same whichever library trains."
    args = lib.DPOConfig(str(folder), use_cpu=True, bf16=False, report_to='none', save_strategy='no', disable_tqdm=True,
                         **(dict(max_steps=20, logging_steps=1, per_device_train_batch_size=4, learning_rate=3e-4, seed=3) | kw))
    model = load_toy_model() if peft_config is None else toy_path()
    t = lib.DPOTrainer(model, args=args, train_dataset=data, eval_dataset=evals, processing_class=load_toy_tokenizer(), peft_config=peft_config)
    t.train()
    if evals is not None: t.state.log_history.append({k: v for k, v in t.evaluate().items() if k != 'epoch'} | dict(step=t.state.global_step))
    return t.state.log_history


def assert_same(ours, theirs, tol=1e-4):
    """Every logged number of every step, within a relative tolerance.

    Rewards near 0 are differences of fp32 log-probs around −30 nats, whose spacing is 2e-6 nats, and a margin has four of them: hence the
    absolute floor."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a['step'] == b['step']
        timing = {k for k in b if k.split('_', 1)[-1] in ('runtime', 'samples_per_second', 'steps_per_second') or k == 'total_flos'}
        assert set(b) <= set(a), set(b) - set(a)
        for k in set(b) - timing:
            assert math.isclose(a[k], b[k], rel_tol=tol, abs_tol=5e-6), (a['step'], k, a[k], b[k])


def plain(row):
    "A conversational row as plain text."
    return {k: row[k][-1]['content'] for k in ('prompt', 'chosen', 'rejected')}


# Adam divides a gradient by its own size, so in its first steps the rounding of nearly-zero gradients counts in full. Where that shows (measured: 6e-6 in a reward
# of 0.02 after one step, 4e-7 with the larger epsilon), both sides get an epsilon above the rounding.
CALM = dict(adam_epsilon=1e-6)
CASES = {
    'conversational': {},
    'plain text': dict(shape=plain, max_steps=8),
    'accumulation': dict(gradient_accumulation_steps=4, per_device_train_batch_size=2, max_steps=8),
    'no checkpointing, beta 0.5': dict(gradient_checkpointing=False, beta=0.5, learning_rate=1e-4, max_steps=8),
    'keep_start 40': dict(max_length=40, max_steps=8, **CALM),
    'keep_end 40': dict(max_length=40, truncation_mode='keep_end', max_steps=8, **CALM),
    'padding to 16, logging every 5': dict(pad_to_multiple_of=16, logging_steps=5),
    'weights and two losses': dict(loss_type=['sigmoid', 'sigmoid'], loss_weights=[0.7, 0.5], max_steps=8),
    'lora': dict(max_steps=8, peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=['q_proj', 'v_proj'])),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('case', CASES)
def test_every_step_equals_trl(case, tmp_path):
    import trl
    kw = dict(CASES[case])
    data = load_toy_pairs()
    rows, evals = data['train'].select(range(160)), data['test'].select(range(16))
    if shape := kw.pop('shape', None): rows, evals = (d.map(shape, remove_columns=d.column_names) for d in (rows, evals))
    kw |= dict(evals=evals, eval_strategy='steps', eval_steps=10) if case == 'conversational' else {}
    ours, theirs = (train(lib, tmp_path/lib.__name__, rows, **kw) for lib in (dpo_nb, trl))
    assert_same(ours, theirs)
    steps = [r for r in ours if 'loss' in r]
    assert set(METRICS) <= set(steps[0])
    if kw.get('logging_steps', 1) == 1: assert math.isclose(steps[0]['loss'], math.log(2)*sum(kw.get('loss_weights', [1])), rel_tol=1e-6)
    assert steps[-1]['rewards/margins'] != steps[0]['rewards/margins']


def test_signature_and_defaults_equal_trl():
    import inspect, trl
    ours, theirs = (inspect.signature(lib.DPOTrainer.__init__).parameters for lib in (dpo_nb, trl))
    assert list(ours) == list(theirs)
    assert {k: p.default for k, p in ours.items()} == {k: p.default for k, p in theirs.items()}
    mine, trls = ({f.name: f for f in lib.DPOConfig.__dataclass_fields__.values()} for lib in (dpo_nb, trl))
    assert set(trls) <= set(mine), set(trls) - set(mine)
    default = lambda f: f.default_factory() if callable(f.default_factory) else f.default
    differ = {k for k in trls if default(trls[k]) != default(mine[k])}
    assert differ <= {'pad_to_multiple_of', 'loss_type'}, differ  # TRL 1.16.0: 'auto' means None except on Neuron devices
