"The doctor sees what trains in silence, keeps quiet about healthy runs, and changes nothing."
import math

import pytest, torch
from peft import LoraConfig, get_peft_model

import dpo_nb
from dpo_nb.toy import load_toy_model, load_toy_pairs, load_toy_tokenizer
from dpo_nb.diagnose.doctor import Diagnosis, Finding, doctor, look_at
from dpo_nb.diagnose.pulse import dead_sign
from dpo_nb.diagnose.questions_model import memory_need, movable

LORA = LoraConfig(r=4, lora_alpha=8, target_modules=['q_proj', 'v_proj'])


@pytest.fixture(scope='module')
def rows(): return load_toy_pairs()['train'].select(range(40))


@pytest.fixture
def trainer(tmp_path, rows):
    def make(model=None, data=None, ref_model=None, peft_config=None, eval_dataset=None, **kw):
        args = dpo_nb.DPOConfig(str(tmp_path), **(dict(use_cpu=True, bf16=False, report_to='none', save_strategy='no', disable_tqdm=True, max_steps=20,
                                                      per_device_train_batch_size=4, learning_rate=1e-4, gradient_checkpointing=False) | kw))
        return dpo_nb.DPOTrainer(model or load_toy_model(), ref_model, args, train_dataset=data or rows, eval_dataset=eval_dataset,
                                 processing_class=load_toy_tokenizer(), peft_config=peft_config)
    return make


def adapted():
    "A model with an adapter that has learned something."
    torch.manual_seed(0)
    m = get_peft_model(load_toy_model(), LORA)
    with torch.no_grad():
        for n, w in m.named_parameters():
            if 'lora_B' in n: w.normal_(std=.05)
    return m


HEALTHY = {
    'full': dict(), 'new adapter': dict(peft_config=LORA), 'continued adapter': dict(model=adapted), 'merged in memory': dict(model=lambda: adapted().merge_and_unload().requires_grad_(True)),
    'precomputed': dict(precompute_ref_log_probs=True), 'attention dropout': dict(model=lambda: load_toy_model(attention_dropout=.5)),
    'own reference, the same': dict(ref_model=load_toy_model), 'ipo': dict(loss_type='ipo'), 'robust': dict(loss_type='robust', label_smoothing=.1), 'two losses': dict(loss_type=['sigmoid', 'sft'], loss_weights=[1., .1]),
    'apo_zero': dict(loss_type='apo_zero'), 'ld_alpha': dict(ld_alpha=.5), 'weighting': dict(use_weighting=True), 'js': dict(f_divergence_type='js_divergence'), 'no reference': dict(loss_type='simpo', beta=2.)}


@pytest.mark.parametrize('case', HEALTHY)
def test_quiet_on_healthy_runs(case, trainer):
    kw = {k: v() if callable(v) else v for k, v in HEALTHY[case].items()}
    found = trainer(**kw).doctor()
    assert [str(f) for f in found if f.verdict != 'ok'] == []


@pytest.mark.parametrize('case, kw, worst', [
    ('another reference', dict(ref_model=lambda: adapted().merge_and_unload()), 'step 0'), ('dropout left on', dict(model=lambda: load_toy_model(attention_dropout=.5), disable_dropout=False), 'step 0'),
    ('bf16 weights', dict(model=lambda: load_toy_model().bfloat16(), learning_rate=1e-6), 'weights that a step can move')], ids=lambda x: x if isinstance(x, str) else '')
def test_sees_what_is_wrong(case, kw, worst, trainer):
    found = trainer(**{k: v() if callable(v) else v for k, v in kw.items()}).doctor()
    assert not found.healthy and worst in [f.name for f in found if f.verdict == 'fail']


def test_sees_what_may_be_wrong(trainer, rows):
    some = rows.map(lambda r, i: dict(rejected=r['chosen'] if i % 3 == 0 else r['rejected']), with_indices=True)
    doubled = rows.select([*range(20), *range(20)])
    # the rejected review said twice: length alone tells them apart
    longer = rows.map(lambda r: dict(rejected=[dict(role='assistant', content=' '.join([r['chosen'][0]['content'], r['rejected'][0]['content']]))]))
    warned = lambda t: {f.name for f in t.doctor() if f.verdict == 'warn'}
    assert 'identical answers' in warned(trainer(data=some))
    assert 'repeated pairs' in warned(trainer(data=doubled))
    assert 'length alone tells the label' in warned(trainer(data=longer))
    assert 'held-out pairs seen in training' in warned(trainer(eval_dataset=rows))
    assert 'learning rate' in warned(trainer(learning_rate=1e-2))
    assert 'cut by max_length' in warned(trainer(max_length=35))


def test_changes_nothing(trainer):
    t = trainer()
    weights, state = {k: v.clone() for k, v in t.model.state_dict().items()}, torch.get_rng_state()
    t.doctor()
    assert torch.equal(state, torch.get_rng_state()) and t.metric_log.pop('train') == {} and t.metric_log.num_tokens == 0
    assert all(torch.equal(v, weights[k]) for k, v in t.model.state_dict().items())
    assert t.state.global_step == 0 and all(p.grad is None for p in t.model.parameters())


def test_after_training_there_is_no_step_zero(trainer):
    t = trainer(max_steps=1)
    t.train()
    found, = doctor(t, only=['step 0'])
    assert found.verdict == 'ok' and 'step 1' in found.value


def test_a_stream_is_not_read_ahead(trainer, rows):
    found = trainer(data=rows.to_iterable_dataset()).doctor()
    assert found.healthy and any('not read ahead' in f.value for f in found)


def test_html_is_escaped(): assert '<img' not in Diagnosis([Finding('<img onerror=x>', '<img>', 'warn', '<img>')])._repr_html_()


@pytest.mark.parametrize('dtype, lr, share', [(torch.bfloat16, 1e-6, 0.), (torch.bfloat16, 1e-3, 1.), (torch.float32, 1e-6, 1.), (torch.float16, 1e-6, 0.)])
def test_which_weights_can_move(dtype, lr, share): assert movable([torch.full((64,), .05, dtype=dtype)], lr) == share


def test_memory_counts_weights_gradients_moments_and_reference(trainer):
    t = trainer()
    n = sum(p.numel() for p in t.model.parameters())
    assert memory_need(t.model, t.ref_model) == 5*4*n and math.isclose(memory_need(trainer(peft_config=LORA).model)/(4*n), 1, rel_tol=.2)


def log(losses, **more): return [dict(step=10*(i+1), loss=v, grad_norm=1., **({'rewards/margins': .01, 'learning_rate': 1e-5} | more)) for i, v in enumerate(losses)]


@pytest.mark.parametrize('entries', [
    [], [dict(step=1, train_runtime=1.)], log([.6931]*3), log([.6931, .6945, .692]*8), log([.6931]*4, learning_rate=0.)[:2], log([.69, .02, .02, .02], **{'rewards/accuracies': .9, 'rewards/margins': 9.}),
    log([1., 0., 0., 0.], **{'rewards/accuracies': 1., 'rewards/margins': 1.2}), log([.69]*3+[.1]*3), [dict(step=100*i, loss=.01, **{'rewards/accuracies': 1., 'rewards/margins': 9.}) for i in range(1, 9)][:1]])
def test_the_pulse_is_quiet_while_it_can_be_well(entries): assert dead_sign(entries, .1) is None


def test_the_pulse_says_each_thing_once(trainer, monkeypatch):
    import dpo_nb.diagnose.pulse as pulse
    from dpo_nb.diagnose import doctor as module
    said = []
    for m in (module, pulse): monkeypatch.setattr(m._logger, 'warning', said.append)
    trainer(beta=1e-6, max_steps=40, logging_steps=4, per_device_train_batch_size=1).train()
    assert len([s for s in said if s.startswith('the loss has been 0.6931')]) == 1 and len([s for s in said if s.startswith('beta: ')]) == 1


def test_the_gradient_is_taken_and_left_alone(trainer):
    t = trainer(peft_config=LORA)
    own = [p for p in t.model.parameters() if p.requires_grad]
    own[0].grad = torch.ones_like(own[0])
    assert doctor(t, only=['gradient'])[0].verdict == 'ok' and torch.equal(own[0].grad, torch.ones_like(own[0])) and all(p.grad is None for p in own[1:])


def test_a_mark_that_opens_every_turn_is_no_second_bos():
    "SmolLM2's BOS is the mark of a turn; two of them side by side, or one before the answer, are still found."
    from dpo_nb.diagnose.questions_data import row_counts
    turns = dict(prompt_ids=[1, 5, 2, 1, 6, 2, 1, 9], chosen_ids=[7, 2], rejected_ids=[8, 2])
    found = [row_counts([turns | more], 1, 2)['two_bos'] for more in ({}, dict(prompt_ids=[1, 1, 5]), dict(chosen_ids=[1, 7, 2]))]
    assert found == [0, 1, 1]


def test_a_second_train_is_not_told_that_its_policy_has_moved(trainer, monkeypatch):
    from dpo_nb.diagnose import doctor as module
    said = []
    monkeypatch.setattr(module._logger, 'warning', said.append)
    t = trainer(max_steps=3, learning_rate=1e-3)
    t.train()
    t.train()
    assert said == []
