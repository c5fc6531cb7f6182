"""Everything a script for TRL's trainer may set, losses aside: TRL 1.16.0 runs live beside us and every logged number is the same.

A tiny random model keeps this quick: what is compared is wiring, and a random model has gradients like any other. Intended differences
have tests of their own at the end."""
import json, math, warnings
from functools import cache

import pytest, torch
from conftest import live_trl
from datasets import Dataset
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import dpo_nb
from dpo_nb.toy import load_helpful_mini, load_toy_pairs, load_toy_tokenizer
from test_trl_parity import plain

pytestmark = [pytest.mark.filterwarnings('ignore')]
LORA = dict(r=4, lora_alpha=8, target_modules=['q_proj', 'v_proj'])
OWN = ('ref_model', 'peft_config', 'data_collator', 'compute_metrics', 'optimizers', 'callbacks', 'quantization_config')
toy = cache(load_toy_pairs)
def spoken(message):
    "Calls as words: their arguments are JSON texts, which TRL's rendering escapes once more and ours does not (tests/test_reports_data.py)."
    said = {k: v for k, v in message.items() if k != 'tool_calls'}
    return said | dict(content=(message.get('content') or '')+json.dumps(message['tool_calls'])) if message.get('tool_calls') else said


@cache
def tools():
    data = load_helpful_mini('tools')['train'].select(range(6)).select_columns(['prompt', 'chosen', 'rejected', 'tools'])
    return Dataset.from_list([r | {k: [spoken(m) for m in r[k]] for k in ('prompt', 'chosen', 'rejected')} for r in data])


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "A folder with a random Llama of two layers that knows the toy tokenizer's words."
    torch.manual_seed(0)
    c = AutoConfig.for_model('llama', vocab_size=len(load_toy_tokenizer()), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                             num_attention_heads=2, num_key_value_heads=1, initializer_range=.1, tie_word_embeddings=False)
    folder = tmp_path_factory.mktemp('tiny')
    AutoModelForCausalLM.from_config(c).save_pretrained(folder)
    load_toy_tokenizer().save_pretrained(folder)
    return str(folder)


def load(folder): return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def other(folder):
    "A reference that is not the model."
    m = load(folder)
    torch.manual_seed(1)
    for w in m.parameters(): w.data += .02*torch.randn_like(w)
    return m


def adapter(folder, config=None):
    "A model with an adapter that has been trained already."
    torch.manual_seed(2)
    m = get_peft_model(load(folder), config or LoraConfig(**LORA))
    for w in m.parameters():
        if w.requires_grad: w.data += .05*torch.randn_like(w)
    return m


def run(lib, folder, out, model=None, data=None, evals=None, then=None, **kw):
    "Train with one library; all it logged, and what `then` measures afterwards."
    own = {k: v() if callable(v := kw.pop(k)) and k in ('ref_model', 'optimizers') else v for k in OWN if k in kw}
    base = dict(max_steps=3, per_device_train_batch_size=2, per_device_eval_batch_size=4, learning_rate=1e-2, logging_steps=1, bf16=False, use_cpu=True,
                save_strategy='no', report_to='none', disable_tqdm=True, seed=1)
    args = lib.DPOConfig(str(out/lib.__name__), **(base | kw))
    data = toy()['train'].select(range(12)) if data is None else data
    t = lib.DPOTrainer(folder if model is None else model(), args=args, train_dataset=data, eval_dataset=evals, processing_class=load_toy_tokenizer(), **own)
    t.train()
    logs = list(t.state.log_history)
    if then: logs.append({k: v for k, v in then(t).items() if k != 'epoch'})
    return logs


def same(ours, theirs, tol=1e-3, floor=3e-5):
    "Every number that TRL logged. Where a margin is rounding noise around 0, so is which side of it a pair is on."
    assert [h.get('step') for h in ours] == [h.get('step') for h in theirs]
    for a, b in zip(ours, theirs):
        timing = {k for k in b if k.endswith(('_runtime', '_per_second', 'total_flos', '_time'))}
        ties = {k for k in b if k.endswith('rewards/accuracies') and abs(b[k.replace('accuracies', 'margins')]) < floor}
        for k in set(b) - timing - ties - {'num_input_tokens_seen'}:
            assert k in a, (k, sorted(a))
            assert math.isclose(a[k], b[k], rel_tol=tol, abs_tol=floor), (a.get('step'), k, a[k], b[k])


def evals(n=6): return toy()['test'].select(range(n))
def drop(*columns): return lambda d: d.remove_columns(list(columns))
def whole(r): return dict(chosen=r['prompt']+r['chosen'], rejected=r['prompt']+r['rejected'])
def rows(f=None, n=12): return toy()['train'].select(range(n)).map(f) if f else toy()['train'].select(range(n))
def text(n=12): return Dataset.from_list([plain(r) for r in rows(n=n)])


CASES = {
    # data
    'plain text': dict(data=lambda: text()),
    'plain text that ends with eos already': dict(data=lambda: text().map(lambda r: dict(chosen=r['chosen']+load_toy_tokenizer().eos_token))),
    'implicit prompt, messages': dict(data=lambda: rows(whole).remove_columns(['prompt', 'reward_chosen', 'reward_rejected', 'flipped'])),
    'implicit prompt, text': dict(data=lambda: Dataset.from_list([dict(chosen=r['prompt']+' '+r['chosen'], rejected=r['prompt']+' '+r['rejected']) for r in text()])),
    'system turn': dict(data=lambda: rows(lambda r: dict(prompt=[dict(role='system', content='Be brief.')]+r['prompt']))),
    'several turns': dict(data=lambda: rows(lambda r: dict(prompt=r['prompt']+[dict(role='assistant', content='Sure.'), dict(role='user', content='Go on.')]))),
    'turns of the user in the answers': dict(data=lambda: rows(lambda r: {k: [*r[k], dict(role='user', content='Why?'), dict(role='assistant', content='So.')] for k in ('chosen', 'rejected')})),
    'tools as a list': dict(data=tools, max_length=None),
    'tools as JSON': dict(data=lambda: tools().map(lambda r: dict(tools=json.dumps([t for t in json.loads(r['tools'])] if isinstance(r['tools'], str) else r['tools']))), max_length=None),
    'chat_template_kwargs': dict(data=lambda: rows().add_column('chat_template_kwargs', [dict(enable_thinking=False)]*12)),
    'columns that nobody reads': dict(data=lambda: rows().add_column('id', [str(i) for i in range(12)])),
    'a stream': dict(data=lambda: rows().to_iterable_dataset()),
    'a stream to evaluate on': dict(evals=lambda: evals().to_iterable_dataset(), eval_strategy='steps', eval_steps=2),
    'in several processes': dict(dataset_num_proc=2),
    # truncation and padding
    'max_length none': dict(max_length=None),
    'keep_start 34': dict(max_length=34),
    'keep_start 20, prompts dropped': dict(max_length=20),
    'keep_end 34': dict(max_length=34, truncation_mode='keep_end'),
    'keep_end 12': dict(max_length=12, truncation_mode='keep_end'),
    'padded to 32': dict(pad_to_multiple_of=32),
    'padding_free': dict(padding_free=True),
    'another pad token': dict(pad_token='<|im_start|>'),
    # batches and order
    'batch 1': dict(per_device_train_batch_size=1),
    'batch 5, short last batch': dict(per_device_train_batch_size=5, max_steps=4),
    'accumulation 3': dict(gradient_accumulation_steps=3),
    'accumulation over the end of an epoch': dict(gradient_accumulation_steps=4, max_steps=4),
    'two epochs': dict(max_steps=-1, num_train_epochs=2, per_device_train_batch_size=4),
    'drop_last': dict(per_device_train_batch_size=5, dataloader_drop_last=True, max_steps=3),
    'in order': dict(train_sampling_strategy='sequential'),
    'another seed': dict(seed=7),
    'data_seed': dict(data_seed=5),
    # optimisation
    'sgd': dict(optim='sgd'),
    'adafactor': dict(optim='adafactor'),
    'weight decay': dict(weight_decay=.3),
    'cosine with warmup': dict(lr_scheduler_type='cosine', warmup_steps=2, max_steps=4),
    'constant': dict(lr_scheduler_type='constant'),
    'clipping': dict(max_grad_norm=.05),
    'no clipping': dict(max_grad_norm=0.),
    'an optimizer of ones own': dict(optimizers=None),
    'beta 1': dict(beta=1.),
    # precision and memory
    'bf16 autocast': dict(bf16=True, low=True),
    'bf16 weights': dict(model_init_kwargs=dict(dtype='bfloat16'), learning_rate=2e-2, max_steps=2, low=True),
    'no checkpointing': dict(gradient_checkpointing=False),
    'reentrant checkpointing': dict(gradient_checkpointing_kwargs=dict(use_reentrant=True)),
    'eager attention': dict(model_init_kwargs=dict(attn_implementation='eager')),
    'dropout left alone': dict(disable_dropout=False),
    # reference
    'a reference that was passed': dict(ref_model='other'),
    'a reference by name': dict(ref_model='name'),
    'precomputed': dict(precompute_ref_log_probs=True),
    'precomputed in other batches': dict(precompute_ref_log_probs=True, precompute_ref_batch_size=5, evals=lambda: evals(), eval_strategy='steps', eval_steps=3),
    'precomputed from another model': dict(precompute_ref_log_probs=True, ref_model='other'),
    'precomputed and cut': dict(precompute_ref_log_probs=True, max_length=34),
    'synced, soft': dict(sync_ref_model=True, ref_model_mixup_alpha=.3, ref_model_sync_steps=1, max_steps=4),
    'synced, hard': dict(sync_ref_model=True, ref_model_mixup_alpha=1., ref_model_sync_steps=2, max_steps=4),
    'synced, another reference': dict(sync_ref_model=True, ref_model='other', ref_model_sync_steps=2),
    # adapters
    'lora': dict(peft_config=LoraConfig(**LORA)),
    'lora with dropout, disabled': dict(peft_config=LoraConfig(**LORA, lora_dropout=.4)),
    'rslora and bias': dict(peft_config=LoraConfig(**LORA, use_rslora=True, bias='all')),
    'dora': dict(peft_config=LoraConfig(**LORA, use_dora=True)),
    'all linear layers': dict(peft_config=LoraConfig(r=2, target_modules='all-linear')),
    'lora and a whole layer': dict(peft_config=LoraConfig(**LORA, modules_to_save=['norm'])),
    'ia3': dict(peft_config=IA3Config(target_modules=['k_proj', 'down_proj'], feedforward_modules=['down_proj'])),
    'lora, precomputed': dict(peft_config=LoraConfig(**LORA), precompute_ref_log_probs=True),
    'lora and a reference that was passed': dict(peft_config=LoraConfig(**LORA), ref_model='other'),
    'lora, no checkpointing, bf16': dict(peft_config=LoraConfig(**LORA), bf16=True, gradient_checkpointing=False, low=True),
    'a continued adapter': dict(model='adapter'),
    'a continued adapter, precomputed': dict(model='adapter', precompute_ref_log_probs=True),
    'virtual tokens': dict(peft_config=PromptTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=3), gradient_checkpointing=False),
    # logging and evaluation
    'logging every 2': dict(logging_steps=2, max_steps=4),
    'logging at the first step': dict(logging_steps=3, logging_first_step=True),
    'evaluated on the way': dict(evals=lambda: evals(), eval_strategy='steps', eval_steps=1),
    'evaluated each epoch': dict(evals=lambda: evals(), eval_strategy='epoch', max_steps=-1, num_train_epochs=1, per_device_train_batch_size=4),
    'evaluated before training': dict(evals=lambda: evals(), eval_on_start=True, eval_strategy='steps', eval_steps=3),
    'evaluated on raw rows afterwards': dict(then=lambda t: t.evaluate(evals(5))),
    'evaluated after training': dict(evals=lambda: evals(), then=lambda t: t.evaluate()),
    'the best checkpoint': dict(evals=lambda: evals(), eval_strategy='steps', eval_steps=1, save_strategy='steps', save_steps=1, load_best_model_at_end=True,
                                metric_for_best_model='eval_rewards/margins', greater_is_better=True, then=lambda t: dict(best=t.state.best_metric, **t.evaluate())),
}


@pytest.mark.parametrize('case', CASES)
def test_every_logged_number_equals_trl(case, tiny, tmp_path):
    trl = live_trl('trl')
    kw = dict(CASES[case])
    tol = dict(tol=.05, floor=.02) if kw.pop('low', False) else {}  # bf16 has 8 bits
    for k in ('data', 'evals'):
        if k in kw: kw[k] = kw[k]()
    model = None
    if kw.get('ref_model'): kw['ref_model'] = {'other': lambda: other(tiny), 'name': lambda: load(tiny)}[kw['ref_model']]
    if kw.pop('model', '') == 'adapter': model = lambda: adapter(tiny)
    both = []
    for lib in (dpo_nb, trl):
        mine = dict(kw)
        if 'optimizers' in mine:
            m = load(tiny)
            mine['optimizers'], start = (torch.optim.SGD(m.parameters(), lr=.1, momentum=.5), None), (lambda m=m: m)
        else: start = model
        both.append(run(lib, tiny, tmp_path, start, **mine))
    same(*both, **tol)
    steps = [h for h in both[0] if 'loss' in h]
    assert len({h['rewards/margins'] for h in steps}) > 1, 'nothing was learned, so nothing was compared'


def test_there_are_sixty_and_more(): assert len(CASES) >= 60


# --- where we differ on purpose

DIFFERENCES = {  # what → (ours, TRL 1.16.0's); each is asserted below
    'metrics of several evaluation sets': ('carry the name of their set', 'overwrite one another'),
    'a merged or edited model': ('is its own reference: ln 2', 'is measured against the model on disk'),
    'dropout in functions': ('is switched off', 'stays on'),
    'an adapter and sync_ref_model': ('the adapter `ref` follows', 'refused'),
    'num_tokens after a resume': ('goes on', 'starts at 0'),
    'a question in another column': ('refused, with its name', 'trained without the question'),
    'log-probs that come with the data': ('taken, if their hash is right', 'an error'),
}


def both(tiny, tmp_path, model=None, **kw):
    trl = live_trl('trl')
    return [run(lib, tiny, tmp_path, model, **kw) for lib in (dpo_nb, trl)]


def first(logs): return next(h for h in logs if 'loss' in h)


def test_several_evaluation_sets(tiny, tmp_path):
    ours, theirs = both(tiny, tmp_path, evals=dict(a=evals(3), b=evals(5)), eval_strategy='steps', eval_steps=3)
    for name in 'ab':
        a, b = (next(h for h in logs if f'eval_{name}_loss' in h) for logs in (ours, theirs))
        for k in ('rewards/margins', 'logps/chosen', 'entropy'): assert math.isclose(a[f'eval_{name}_{k}'], b[f'eval_{k}'], rel_tol=1e-3, abs_tol=3e-5)
        assert f'eval_{name}_rewards/margins' not in b


def test_an_edited_model_is_its_own_reference(tiny, tmp_path):
    def edited():
        m = load(tiny)
        for w in m.parameters(): w.data *= 1.05
        return m
    ours, theirs = both(tiny, tmp_path, edited, max_steps=1)
    assert math.isclose(first(ours)['loss'], math.log(2), rel_tol=1e-6) and abs(first(theirs)['loss'] - math.log(2)) > 1e-3


def test_dropout_in_functions(tiny, tmp_path):
    def noisy(): return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32, attention_dropout=.5)
    ours, theirs = both(tiny, tmp_path, noisy, max_steps=1)
    assert math.isclose(first(ours)['loss'], math.log(2), rel_tol=1e-6) and abs(first(theirs)['loss'] - math.log(2)) > 1e-4


def test_adapters_may_follow(tiny, tmp_path):
    trl = live_trl('trl')
    kw = dict(peft_config=LoraConfig(**LORA), sync_ref_model=True, ref_model_mixup_alpha=1., ref_model_sync_steps=1)
    assert all(math.isclose(h['loss'], math.log(2), rel_tol=1e-5) for h in run(dpo_nb, tiny, tmp_path, **kw) if 'loss' in h)
    with pytest.raises(NotImplementedError): run(trl, tiny, tmp_path, **kw)


def test_num_tokens_goes_on(tiny, tmp_path):
    trl = live_trl('trl')
    seen = []
    for lib in (dpo_nb, trl):
        run(lib, tiny, tmp_path, save_strategy='steps', save_steps=2, max_steps=4)
        args = lib.DPOConfig(str(tmp_path/lib.__name__), max_steps=4, per_device_train_batch_size=2, logging_steps=1, bf16=False, use_cpu=True, report_to='none', disable_tqdm=True, seed=1)
        t = lib.DPOTrainer(tiny, args=args, train_dataset=rows(), processing_class=load_toy_tokenizer())
        t.train(resume_from_checkpoint=str(tmp_path/lib.__name__/'checkpoint-2'))
        seen.append([h['num_tokens'] for h in t.state.log_history if 'loss' in h])
    assert seen[0][1] < seen[0][2] < seen[0][3] and seen[1][2] < seen[1][1]


def test_a_question_in_another_column(tiny, tmp_path):
    trl = live_trl('trl')
    data = Dataset.from_list([dict(question='Where is it?', chosen=f'The answer is {i}.', rejected=f'The answer is not {i}.') for i in range(6)])
    assert 'loss' in first(run(trl, tiny, tmp_path, data=data, max_steps=1))
    with pytest.raises(ValueError, match="'question'"): run(dpo_nb, tiny, tmp_path, data=data, max_steps=1)


def test_log_probs_that_come_with_the_data(tiny, tmp_path):
    trl = live_trl('trl')
    args = dpo_nb.DPOConfig(str(tmp_path/'x'), precompute_ref_log_probs=True, bf16=False, use_cpu=True, report_to='none')
    done = dpo_nb.DPOTrainer(tiny, args=args, train_dataset=rows(), processing_class=load_toy_tokenizer()).train_dataset
    plain_run, again = (run(dpo_nb, tiny, tmp_path, data=d, precompute_ref_log_probs=True) for d in (rows(), done))
    assert [h['loss'] for h in plain_run if 'loss' in h] == [h['loss'] for h in again if 'loss' in h]
    with pytest.raises(ValueError, match='duplicated'): run(trl, tiny, tmp_path, data=done, precompute_ref_log_probs=True)
