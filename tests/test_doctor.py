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


# --- each question: what it warns of, and the value next to it of which it does not

def verdict(t, name, **kw):
    found = doctor(t, only=[name], **kw)
    return found[0].verdict if found else None


@pytest.mark.parametrize('lr, says', [(1e-6, {'learning rate', 'reach of the run'}), (6e-5, {'learning rate', 'reach of the run'}), (1e-4, set()), (4e-3, {'learning rate'})])
def test_an_adapter_at_the_learning_rate_of_all_weights(lr, says, trainer):
    "TRL's default of 1e-6 is meant for all weights; an adapter ends where it began. Width 128: 6.4e-5 to 3.2e-3 is usual."
    assert {f.name for f in trainer(peft_config=LORA, learning_rate=lr).doctor() if f.verdict == 'warn'} == says
    assert verdict(trainer(learning_rate=1e-6), 'learning rate') == 'ok'   # of all weights it is the default


def test_what_the_reach_promises_is_what_a_run_does(trainer, rows):
    "The bound holds, and below a two-hundredth of the loss the log shows nothing."
    moved = {}
    for lr in (1e-6, 1e-3):
        t = trainer(data=rows.select(range(4)), peft_config=LORA, learning_rate=lr, lr_scheduler_type='constant', logging_steps=1, max_steps=10)
        run = look_at(t)
        bound = run.steps*lr*run.first_gradient.total
        t.train()
        losses = [h['loss'] for h in t.state.log_history if 'loss' in h]
        moved[lr] = losses[0]-losses[-1]
        assert moved[lr] < 1.5*bound    # the bound is the shortest pair's
    assert abs(moved[1e-6]) < 1e-3 < moved[1e-3]


def test_only_asks_what_is_named(trainer):
    t = trainer()
    assert [f.name for f in t.doctor(only=['beta', 'memory'])] == ['beta', 'memory']
    with pytest.raises(ValueError, match="no question \\['bta'\\]; it has .*beta"): t.doctor(only=['bta'])


def test_texts_among_messages_are_told(trainer):
    "A column of JSON may hold both; all rows are read as the first one is."
    from datasets import Dataset, Features, Json, List, Value
    t = trainer()
    plain = [dict(prompt='Hi.', chosen=' Yes.', rejected=' No.')]*3
    chats = [{k: r[k] for k in ('prompt', 'chosen', 'rejected')} for r in load_toy_pairs()['train'].select(range(4))]
    ids = dict(prompt_ids=[5, 6], chosen_ids=[7, 2], rejected_ids=[8, 2])
    kinds = Features({k: Json() for k in plain[0]} | {k: List(Value('int64')) for k in ids})
    t.train_dataset = Dataset.from_list([r | ids for r in chats+plain], features=kinds)
    found, = doctor(t, only=['layout'])
    assert found.verdict == 'fail' and found.value == 'conversational in 4 rows and plain text in 3 rows, all read as row 0 is' and 'lists of messages' in found.advice


def test_an_optimizer_made_before_the_adapter(trainer):
    t = trainer(peft_config=LORA)
    own = [p for p in t.model.parameters() if p.requires_grad]
    given = lambda ps: (setattr(t, 'optimizer', torch.optim.AdamW(ps)), doctor(t, only=['optimizer'])[0])[1]
    assert verdict(t, 'optimizer') is None
    assert given(own).verdict == 'ok' and given(own[1:]).verdict == 'warn' and given(own[1:]).value == f'{len(own)-1} of {len(own)} trainable tensors'
    assert given([p for p in t.model.parameters() if not p.requires_grad]).verdict == 'fail'


def test_a_stream_whose_tokenizer_is_larger_than_the_model(trainer, rows):
    t = trainer(data=rows.to_iterable_dataset())
    assert verdict(t, 'token ids') == 'ok'
    t._tokenizer.add_tokens(['<new>'])
    assert verdict(t, 'token ids') == 'fail'


def test_rows_that_cannot_pass_are_not_passed(trainer):
    "Ids beyond the embedding: an answer, not an IndexError; and everything that needs no pass is still asked."
    t = trainer()
    t.train_dataset = t.train_dataset.map(lambda r: dict(rejected_ids=[*r['rejected_ids'], 885]))
    found = {f.name: f for f in t.doctor()}
    assert found['token ids'].verdict == 'fail' and found['step 0'].value == 'not asked: a token id is beyond the embedding'
    assert 'gradient' not in found and 'causal' not in found and 'the reference alone tells the label' not in found and found['beta'].verdict == 'ok'


def test_a_checkpoint_as_its_own_reference(trainer, tmp_path):
    t = trainer(max_steps=2, save_strategy='steps', save_steps=2)
    t.train()
    again = trainer(str(tmp_path/'checkpoint-2'))
    found, = doctor(again, only=['reference'])
    assert found.verdict == 'warn' and found.advice.startswith(f'{tmp_path}/checkpoint-2 is a checkpoint')
    assert verdict(trainer(str(tmp_path/'checkpoint-2'), ref_model=load_toy_model()), 'reference') == 'ok'


def test_losses_that_need_no_step_zero(trainer):
    assert 'no loss uses a reference' in doctor(trainer(loss_type='simpo', beta=2.), only=['step 0'])[0].value
    assert doctor(trainer(loss_type='simpo', beta=2.), only=['reference', 'the reference alone tells the label'])[0].value.startswith('none')
    assert len(doctor(trainer(loss_type='simpo', beta=2.), only=['the reference alone tells the label'])) == 0


def test_a_loss_that_is_no_number(trainer):
    t = trainer()
    with torch.no_grad(): next(t.model.parameters()).mul_(math.nan)
    found, = doctor(t, only=['step 0'], ref_differs=True)
    assert found.verdict == 'fail' and 'not finite' in found.advice


def test_nobody_knows_the_label_from_the_reference_of_a_few_pairs(trainer, rows):
    backwards = rows.map(lambda r: dict(rejected=[dict(role='assistant', content=' '.join(r['rejected'][0]['content'].split()[::-1]))]))
    assert [verdict(trainer(data=backwards.select(range(n))), 'the reference alone tells the label') for n in (29, 30)] == ['ok', 'warn']


def test_what_was_left_out_is_told(trainer):
    t = trainer()
    t.rows.left_out['train'] = 5
    found, = doctor(t, only=['cut by max_length'])
    assert found.verdict == 'warn' and '5 more were left out, because their prompt alone fills it' in found.value
    t.args.overlong = 'drop'
    assert verdict(t, 'cut by max_length') == 'ok'


def test_memory_that_is_not_there(trainer, monkeypatch):
    from dpo_nb.diagnose import questions_model as module
    t = trainer()
    need = module.memory_need(t.model, t.ref_model)
    peak = look_at(t).peak
    for free, is_well in ((int(peak/.89), 'ok'), (int(peak/.91), 'warn'), (None, 'ok')):
        monkeypatch.setattr(module, 'free_memory', lambda kind, held: free)
        assert verdict(t, 'memory') == is_well
    assert peak > need


def test_bf16_where_it_is_emulated(trainer, monkeypatch):
    from dpo_nb.diagnose import questions_model as module
    monkeypatch.setattr(module, 'native_bf16', lambda cpu: (False, 'no bf16 here'))
    assert verdict(trainer(), 'device') == 'ok' and verdict(trainer(bf16=True), 'device') == 'warn'


def test_held_out_sets_of_a_dict_are_not_mixed_up(trainer, rows):
    assert 'held-out pairs seen in training' not in {f.name for f in trainer(eval_dataset=dict(a=rows, b=rows)).doctor()}


def test_the_doctor_leaves_random_numbers_and_cache_alone(trainer):
    t = trainer(num_train_epochs=2)
    cache, state = t.reference.cache, torch.get_rng_state()
    t.doctor()
    assert t.reference.cache is cache and not cache.rows and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('first', [True, False])
def test_only_rank_0_logs(first, trainer, monkeypatch):
    from types import SimpleNamespace
    from dpo_nb.diagnose import doctor as module, pulse
    said = []
    for m in (module, pulse): monkeypatch.setattr(m._logger, 'warning', said.append)
    t = trainer(load_toy_model().bfloat16(), learning_rate=1e-6)
    state = SimpleNamespace(global_step=0, is_world_process_zero=first, log_history=log([.6931]*4, learning_rate=0.), max_steps=100)
    module.FirstLook(t).on_train_begin(t.args, state, None)
    pulse.Pulse(t).on_log(t.args, state, None, dict(loss=.6931))
    assert len(said) == (2 if first else 0)


@pytest.mark.parametrize('flags, code', [([], 0), (['--beta', '1e-6'], 1), (['--bta', '1'], 2)])
def test_the_exit_code_says_what_was_found(flags, code, tmp_path, monkeypatch, capsys):
    from dpo_nb.run import cli
    monkeypatch.chdir(tmp_path)
    assert cli.doctor(['--max_steps', '20', '--use_cpu', '--bf16', 'False', *flags]) == code
    assert ('0 wrong' in capsys.readouterr().out) == (code == 0)


def test_losses_start_where_the_doctor_says():
    "Each loss of the table, computed where policy and reference are one model."
    from dpo_nb.diagnose.questions_model import loss_at_start
    from dpo_nb.losses.registry import bind_losses, records
    from dpo_nb.pairs import PairLogps
    p = PairLogps(*(torch.tensor(v) for v in ([-9., -20.], [-12., -7.], [-9., -20.], [-12., -7.], [5., 9.], [7., 4.])))
    starts = {name: r.start for name, r in records.items() if r.start is not None}
    for name, wanted in starts.items():
        args = dpo_nb.DPOConfig('x', loss_type=name, beta=.2, use_cpu=True, bf16=False, report_to='none')
        (loss, _), = bind_losses(args.loss_type, beta=.2)
        assert loss(p).mean().item() == pytest.approx(wanted, abs=1e-6), name
        assert loss_at_start(args) == wanted
    assert {'ipo', 'sft', 'exo_pair', 'simpo'}.isdisjoint(starts) and len(starts) > 10


def test_free_memory_is_read_in_kilobytes(monkeypatch):
    from pathlib import Path
    from dpo_nb.diagnose import questions_model as module
    monkeypatch.setattr(Path, 'read_text', lambda self: 'MemTotal: 9 kB\nMemAvailable:   2048 kB')
    assert module.free_ram() == 2*2**20 and module.free_memory('cpu', 5) == 2*2**20+5
    def gone(self): raise OSError
    monkeypatch.setattr(Path, 'read_text', gone)
    assert module.free_ram() is None and module.free_memory('cpu', 5) is None or torch.cuda.is_available()


# --- pure measures, at their limits

def test_planned_steps_count_what_is_accumulated():
    from datasets import Dataset
    from dpo_nb.diagnose.questions_model import planned_steps
    data = Dataset.from_list([dict(a=1)]*50)
    steps = lambda **kw: planned_steps(dpo_nb.DPOConfig('x', per_device_train_batch_size=4, use_cpu=True, bf16=False, report_to='none', **kw), data)
    assert steps(num_train_epochs=1) == 13 and steps(num_train_epochs=1, gradient_accumulation_steps=4) == 4 and steps(num_train_epochs=2.5, gradient_accumulation_steps=4) == 10
    assert steps(num_train_epochs=1, max_steps=0) == 13 and steps(num_train_epochs=1, max_steps=1) == 1


def test_limits_of_the_tables():
    "The largest size that is well, and the next one."
    from dpo_nb.diagnose.doctor import questions
    limits = {(q.name, q.measure.__name__): (q.limit, q.verdict) for q in questions}
    assert {k[0]: v for k, v in limits.items() if math.isfinite(v[0]) and v[0] not in (0, 1)} == {
        'step 0': (1e-3, 'fail'), 'weights that a step can move': (.5, 'fail'), 'reach of the run': (200, 'warn'), 'token boundary moved': (.05, 'warn'), 'repeated pairs': (.05, 'warn'),
        'length alone tells the label': (.9, 'warn'), 'the first token tells the label': (.7, 'warn'), 'the reference alone tells the label': (.47, 'warn'), 'memory': (.9, 'warn')}
    assert limits['reach of the run', 'weights_reach'] == (1e4, 'warn')
    assert {k[0] for k, v in limits.items() if v[1] == 'fail'} == {'token ids', 'positions', 'causal', 'step 0', 'weights that a step can move', 'beta', 'gradient', 'layout'}


def test_an_end_is_one_of_the_last_two_tokens():
    from dpo_nb.diagnose.questions_data import row_counts
    row = lambda *ids: dict(prompt_ids=[1], chosen_ids=list(ids), rejected_ids=[9, 2])
    assert [row_counts([row(*ids)], None, 2)['chosen_ends'] for ids in ((5, 6, 2), (5, 2, 6), (2, 5, 6))] == [1, 1, 0]


@pytest.mark.parametrize('one, both, left, size', [(0, 0, 0, 0.), (10, 0, 0, 2.), (5, 5, 0, 1.), (0, 20, 0, 2.), (0, 0, 4, 4/104/.02)])
def test_what_is_cut_in_units_of_its_limit(one, both, left, size):
    "A tenth of the pairs, a twentieth on one side, a fiftieth left out."
    from types import SimpleNamespace
    from dpo_nb.diagnose.questions_data import cut_pairs
    pair = lambda w, l: dict(prompt_ids=[1]*4, chosen_ids=[2]*w, rejected_ids=[3]*l)
    rows = [pair(9, 2)]*one + [pair(9, 9)]*both + [pair(2, 2)]*(100-one-both)
    args = SimpleNamespace(max_length=10, truncation_mode='keep_start', overlong='truncate')
    assert cut_pairs(rows, args, left).size == pytest.approx(size)
