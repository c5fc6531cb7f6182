"""What people suffer from in DPO trainers, one test for each of twelve promises; then the failures that TRL 1.16.0 lets pass in silence: it runs live and says
nothing, and beside it we refuse, warn or do the right thing. Where another test covers a promise in full, it is named."""
import json, logging, math, re, sys, warnings

import pytest, torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback

import dpo_nb
from dpo_nb.data.truncate import prepare_dataset
from dpo_nb.logps import score_tokens
from dpo_nb.losses.sigmoid import sigmoid_loss
from dpo_nb.pairs import PairLogps
from dpo_nb.toy import load_toy_tokenizer
from project import pages
from test_trl_trainer import DIFFERENCES, LORA, adapter, load, other, rows, run, tiny  # noqa: F401 (`tiny` is a fixture)

pytestmark = pytest.mark.filterwarnings('ignore')
trl = pytest.mark.skipif(sys.version_info < (3, 11), reason='TRL 1.16.0 needs Python 3.11')
LN2 = math.log(2)


class Heard(logging.Handler):
    "What a library warns of."
    def __init__(self, names):
        super().__init__(logging.WARNING)
        self.said, self.loggers = [], [logging.getLogger(n) for n in names]
    def emit(self, record): self.said.append(record.getMessage())
    def __enter__(self):
        for l in self.loggers: l.addHandler(self)
        return self.said
    def __exit__(self, *e):
        for l in self.loggers: l.removeHandler(self)


def ours(folder, out, **kw):
    "(log, warnings) of a run of ours."
    with Heard(['dpo_nb']) as said: return run(dpo_nb, folder, out, **kw), said


def theirs(folder, out, **kw):
    "(log, warnings) of the same run of TRL's; deprecations are none of its warnings."
    import trl
    with Heard(['trl', 'transformers', 'py.warnings']) as said, warnings.catch_warnings():
        warnings.simplefilter('default')
        return run(trl, folder, out, **kw), [s for s in said if 'deprecat' not in s and 'gradient_checkpointing' not in s]


def first(logs): return next(h for h in logs if 'loss' in h)
def steps(logs): return [h for h in logs if 'loss' in h]


@pytest.fixture
def trainer(tiny, tmp_path):
    def make(model=None, data=None, lib=dpo_nb, **kw):
        own = {k: kw.pop(k) for k in ('peft_config', 'ref_model', 'callbacks') if k in kw}
        args = lib.DPOConfig(str(tmp_path/lib.__name__), **(dict(max_steps=1, per_device_train_batch_size=2, bf16=False, use_cpu=True, save_strategy='no', report_to='none', disable_tqdm=True,
                                                              gradient_checkpointing=False, logging_steps=1, learning_rate=1e-2, seed=1) | kw))
        return lib.DPOTrainer(tiny if model is None else model, args=args, train_dataset=rows() if data is None else data, processing_class=load_toy_tokenizer(), **own)
    return make


# --- 1: the first step

AT_START = {
    'full': lambda f: dict(), 'new adapter': lambda f: dict(peft_config=LoraConfig(**LORA)), 'continued adapter': lambda f: dict(model=adapter(f)),
    'merged in memory': lambda f: dict(model=adapter(f).merge_and_unload().requires_grad_(True)), 'precomputed': lambda f: dict(precompute_ref_log_probs=True),
    'explicit reference': lambda f: dict(ref_model=load(f)), 'attention dropout': lambda f: dict(model=AutoModelForCausalLM.from_pretrained(f, attention_dropout=.5, dtype=torch.float32))}

@pytest.mark.parametrize('case', AT_START)
def test_01_the_first_step_is_ln_2_with_rewards_0_and_an_accuracy_of_one_half(case, tiny, trainer):
    t = trainer(**AT_START[case](tiny))
    t.train()
    h = first(t.state.log_history)
    assert h['loss'] == pytest.approx(LN2, abs=1e-6) and h['rewards/chosen'] == h['rewards/rejected'] == 0 and h['objective/accuracies'] == .5 and h['rewards/accuracies'] == 0


# --- 2: batches and padding

def test_02_accumulation_is_a_larger_batch(trainer):
    moved = []
    for b, a in ((4, 1), (1, 4)):
        t = trainer(per_device_train_batch_size=b, gradient_accumulation_steps=a, optim='sgd', learning_rate=1., max_grad_norm=0., lr_scheduler_type='constant', train_sampling_strategy='sequential')
        start = [w.detach().clone() for w in t.model.parameters()]
        t.train()
        moved.append(torch.cat([(w.detach()-s).flatten() for w, s in zip(t.model.parameters(), start)]))
    assert moved[0].abs().max() > 1e-4 and torch.allclose(*moved, atol=1e-6)


def test_02_padding_and_chunks_change_nothing(tiny):
    m, T = load(tiny).eval(), 9
    ids, scored = torch.randint(3, 200, (1, T), generator=torch.Generator().manual_seed(0)), torch.tensor([[0]*4+[1]*5])
    def padded(left, right):
        wide = lambda x, v: torch.nn.functional.pad(x, (left, right), value=v)
        here = wide(torch.ones_like(ids), 0)
        with torch.no_grad(): z = m(input_ids=wide(ids, 0), attention_mask=here, position_ids=(here.cumsum(-1)-1).clamp(min=0)).logits
        return score_tokens(z, wide(ids, 0), wide(scored, 0)).sums
    with torch.no_grad(): naive = m(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[0, 3:, 0].sum()
    for sums in (padded(0, 0), padded(5, 0), padded(0, 5), padded(3, 2)): assert sums.item() == pytest.approx(naive.item(), abs=1e-4)
    # equal loss and gradients of all fast paths: tests/test_fast.py


# --- 3: what is refused, what is read

def test_03_a_question_in_another_column_is_named(trainer):
    data = Dataset.from_list([dict(question='Where?', chosen=f'The answer is {i}.', rejected=f'The answer is not {i}.') for i in range(4)])
    with pytest.raises(ValueError, match="'question'"): trainer(data=data)


def test_03_a_text_as_prompt_beside_messages_is_one_sentence(trainer):
    say = lambda *t: [dict(role=r, content=c) for r, c in zip(('user', 'assistant'), t)]
    h4 = Dataset.from_list([dict(prompt='Where?', chosen=say('Where?', f'Here {i}.'), rejected=say('Where?', f'There {i}.')) for i in range(4)])
    with pytest.raises((ValueError, TypeError)) as e: trainer(data=h4)
    assert 'prompt' in str(e.value) and len(str(e.value)) < 400 and 'concatenate' not in str(e.value)


def repeated(): return Dataset.from_list([dict(prompt=r['prompt'], chosen=r['prompt']+r['chosen'], rejected=r['prompt']+r['rejected']) for r in rows()])

def test_03_a_prompt_that_is_repeated_in_the_answers_is_refused(trainer):
    with pytest.raises(ValueError, match='prompt'): trainer(data=repeated())


# --- 4: truncation

def test_04_the_truncation_report_adds_up_and_names_pairs_with_one_end(trainer):
    n = 12
    with Heard(['dpo_nb']) as said: t = trainer(max_length=50)
    text = next(s for s in said if 'max_length=50' in s)
    whole = int(re.search(r'leaves (\d+) of 12 pairs whole', text)[1])
    both = sum(len(r['prompt_ids'])+max(len(r['chosen_ids']), len(r['rejected_ids'])) <= 50 for r in trainer().train_dataset)
    assert whole == both < n and 'only one side keeps its end-of-sequence token' in text
    dropped = trainer(max_length=50, overlong='drop').train_dataset
    assert len(dropped) == whole
    eos = load_toy_tokenizer().eos_token_id
    assert all(eos in r['chosen_ids'][-2:] and eos in r['rejected_ids'][-2:] for r in dropped)


# --- 5: one beginning, one end

FAMILIES = {  # how five families write a conversation: (before, start of a turn, end of a turn, after the last end)
    'llama-3': ('<s>', '<|start_header_id|>{}<|end_header_id|>\n\n', '<|im_end|>', ''), 'qwen': ('', '<|im_start|>{}\n', '<|im_end|>', '\n'), 'gemma': ('<s>', '<start_of_turn>{}\n', '<|im_end|>', '\n'),
    'gpt-2, plain text': None, 'smollm2': ('<|im_start|>system\nYou help.<|im_end|>\n', '<|im_start|>{}\n', '<|im_end|>', '\n')}

@pytest.mark.parametrize('family', FAMILIES)
def test_05_exactly_one_bos_and_one_trained_eos(family):
    tok = load_toy_tokenizer()
    tok.add_special_tokens(dict(bos_token='<s>'))
    if FAMILIES[family]:
        before, start, end, after = FAMILIES[family]
        turn = start.format("' + m['role'] + '").replace('\n', '\\n')
        tok.chat_template = f"{{{{ {json.dumps(before)} }}}}{{% for m in messages %}}{{{{ '{turn}' + m['content'] + {json.dumps(end+after)} }}}}{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{start.format('assistant')}' }}}}{{% endif %}}".replace('\n', '\\n')
        data = rows()
    else: data = Dataset.from_list([dict(prompt='Say it.', chosen=f' Yes {i}.', rejected=f' No {i}.') for i in range(6)])
    for r in prepare_dataset(data, tok, max_length=1024):
        for side in ('chosen_ids', 'rejected_ids'):
            assert (r['prompt_ids']+r[side]).count(tok.bos_token_id) == (FAMILIES[family] is not None and FAMILIES[family][0] == '<s>')
            assert r[side].count(tok.eos_token_id) == 1 and tok.eos_token_id in r[side][-2:]


# --- 6: settings that cannot learn

def test_06_bf16_weights_and_a_small_learning_rate_warn(tiny, tmp_path):
    logs, said = ours(tiny, tmp_path, model_init_kwargs=dict(dtype='bfloat16'), learning_rate=1e-6)
    assert [s for s in said if 'rounds such steps away' in s] and first(logs)['weights/frac_changed'] < .05


@pytest.mark.parametrize('make, says', [
    (lambda f: f(beta=0.), 'beta'), (lambda f: f(peft_config=None, model='frozen'), 'nothing would be trained'), (lambda f: f(data=rows(lambda r: dict(rejected=r['chosen']))), 'nothing to learn')],
    ids=['beta is 0', 'nothing is trainable', 'pairs are twins'])
def test_06_what_cannot_learn_is_refused_by_name(make, says, trainer, tiny):
    build = lambda **kw: trainer(**(kw | (dict(model=load(tiny).requires_grad_(False)) if kw.get('model') == 'frozen' else {})))
    with pytest.raises(ValueError, match=says): make(build)


# --- 7: resuming

def test_07_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(trainer, tmp_path):
    kw = dict(max_steps=4, save_strategy='steps', save_steps=2)
    numbers = lambda t: [{k: v for k, v in h.items() if 'runtime' not in k and 'second' not in k} for h in steps(t.state.log_history)]
    whole, again = trainer(**kw), trainer(**kw)
    whole.train(); again.train(resume_from_checkpoint=str(tmp_path/'dpo_nb'/'checkpoint-2'))
    assert numbers(whole) == numbers(again) and all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters()))
    with Heard(['dpo_nb']) as said: trainer(str(tmp_path/'dpo_nb'/'checkpoint-2'))
    assert [s for s in said if 'half-trained weights become the reference' in s]


# --- 8: metrics that describe the loss

UPSIDE_DOWN = dict(chosen=5., rejected=4., ref_chosen=0., ref_rejected=0., chosen_len=100., rejected_len=10.)  # per answer the chosen one is ahead, per token the rejected one

@pytest.mark.parametrize('loss', ['ipo', 'sigmoid_norm'])
def test_08_the_logged_margin_has_the_sign_of_what_is_optimised(loss):
    from dpo_nb.losses.registry import bind_losses
    from dpo_nb.losses.objective import compared as objective
    p, bound = PairLogps(**{k: torch.tensor([v]) for k, v in UPSIDE_DOWN.items()}), bind_losses([loss], beta=.1)
    at_zero = bound[0][0](PairLogps(*(torch.tensor([v]) for v in (0., 0., 0., 0., 100., 10.))))
    w, l = objective(p, bound, .1)
    assert bound[0][0](p) > at_zero and (w-l) < 0 < p.delta   # the loss is worse than at the start, and so is the logged margin; β·Δ is not


# --- 9: where training comes to rest

@pytest.mark.parametrize('beta', [.1, .5])
def test_09_adam_comes_to_rest_at_logit_p_over_beta(beta):
    p, x = .9, torch.zeros(1, requires_grad=True)
    opt = torch.optim.Adam([x], lr=.3)
    zero = torch.zeros(1)
    for i in range(600):
        pair = lambda sign: PairLogps(x if sign > 0 else zero, zero if sign > 0 else x, zero, zero, zero+1, zero+1)
        loss = p*sigmoid_loss(pair(1), beta=beta) + (1-p)*sigmoid_loss(pair(-1), beta=beta)
        opt.zero_grad(); loss.sum().backward(); opt.step()
    assert x.item() == pytest.approx(math.log(p/(1-p))/beta, rel=.01)


# --- 10, 11: the pages (that each runs from the built wheel: .ci/run; figures in a browser: tests/test_site.py)

def notebook(p): return json.loads(p.read_text(encoding='utf-8'))

def test_10_no_widget_state_and_a_static_side_for_every_script():
    for p in pages():
        nb = notebook(p)
        assert 'widgets' not in nb['metadata'], p
        shown = [''.join(o['data']['text/html']) for c in nb['cells'] for o in c.get('outputs', []) if 'text/html' in o.get('data', {})]
        for h in shown: assert '<script' not in h or '<svg' in h or '<noscript' in h or '<table' in h, p


def test_11_decimals_in_prose_come_from_cells():
    "Adapted: of the decimals with two places or more, outside formulas and worked-out examples, every one stands in a cell or its output, as they are or in percent."
    seen, lost = 0, []
    for p in pages():
        if p.parent.name == 'losses': continue  # their sections By hand are sums written out, each result asserted
        cells = notebook(p)['cells']
        code = [''.join(c['source'])+json.dumps([{k: v for k, v in o.items() if k != 'data'} | dict(d={k: v for k, v in o.get('data', {}).items() if 'image' not in k}) for o in c['outputs']], ensure_ascii=False)
                for c in cells if c['cell_type'] == 'code']
        known = {float(x.replace(',', '')) for x in re.findall(r'\d+(?:,\d{3})*(?:\.\d+)?|\.\d+', '\n'.join(code))}
        prose = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
        prose = re.sub(r'\$\$.*?\$\$|\$[^$\n]*\$|```.*?```|`[^`]*`|\]\([^)]*\)|https?://\S+|\d{4}\.\d{4,5}|(?i:TRL|transformers|torch|PEFT|Python|v)\s*\d[\d.]*', '', prose, flags=re.S)
        for m in re.finditer(r'(?<![\w.])\d+\.\d{2,}(?![\w.]*\d)', prose):
            v, tol = float(m[0]), .5000001*10**-len(m[0].split('.')[1])
            seen += 1
            if not any(abs(x-s*v) <= tol*s for x in known for s in (1, 100, .01)): lost.append(f'{p.name}: {m[0]}')
    assert seen > 60 and not lost, lost


# --- 12: agreement

@trl
def test_12_loss_gradient_and_metrics_agree_with_trl_and_the_differences_are_listed(tiny, tmp_path):
    (a, _), (b, _) = (f(tiny, tmp_path, max_steps=2) for f in (ours, theirs))
    for x, y in zip(steps(a), steps(b)):
        assert set(y) <= set(x)
        for k in y: assert math.isclose(x[k], y[k], rel_tol=1e-3, abs_tol=3e-5), (k, x[k], y[k])
    assert len(DIFFERENCES) >= 7  # 60 settings more, and these differences one by one: tests/test_trl_trainer.py
    extra = set(first(a)) - set(first(b))
    assert {k.split('/')[0] for k in extra} == {'objective', 'moved', 'kl', 'logps_per_token', 'data', 'weights'} and len(extra) == 13


# --- silent elsewhere: what TRL 1.16.0 trains to the end, and what happens here. The numbers are those of the list that users' threads were sorted into.

def text(**more): return [dict(prompt=f'Say {i}.', chosen=f' Yes {i}.', rejected=f' No {i}.') | more for i in range(8)]

def moved(t, start): return sum((w != s).sum().item() for w, s in zip(t.model.parameters(), start))/sum(s.numel() for s in start)


@trl
def test_a1_a_question_that_is_never_shown(tiny, tmp_path):
    data = Dataset.from_list([dict(question=f'What is the capital of country {i}?', chosen=f'Paris {i}.', rejected=f'Lyon {i}.') for i in range(6)])
    logs, said = theirs(tiny, tmp_path, data=data, max_steps=1)
    assert 'loss' in first(logs) and not said
    with pytest.raises(ValueError, match="'question'"): ours(tiny, tmp_path, data=data, max_steps=1)


@trl
def test_a2_bf16_weights_that_do_not_move(tiny, tmp_path):
    import trl
    kw = dict(model_init_kwargs=dict(dtype='bfloat16'), learning_rate=1e-6, max_steps=3)
    share = {}
    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **k): self.start = [w.detach().clone() for w in model.parameters()]
        def on_train_end(self, args, state, control, model=None, **k): share['trl'] = sum((w != s).sum().item() for w, s in zip(model.parameters(), self.start))/sum(s.numel() for s in self.start)
    logs, said = theirs(tiny, tmp_path, callbacks=[Look()], **kw)
    assert share['trl'] < .05 and len(steps(logs)) == 3 and not said
    logs, said = ours(tiny, tmp_path, **kw)
    assert [s for s in said if 'rounds such steps away' in s] and all(h['weights/frac_changed'] < .05 for h in steps(logs))


@trl
def test_a3_a_merged_model_measured_against_the_one_on_disk(tiny, tmp_path):
    def merged(): return adapter(tiny).merge_and_unload().requires_grad_(True)
    (a, _), (b, said) = (f(tiny, tmp_path, model=merged, max_steps=1) for f in (ours, theirs))
    assert abs(first(b)['loss']-LN2) > 1e-3 and not said and first(a)['loss'] == pytest.approx(LN2, abs=1e-6)


@trl
def test_a4_a_continued_adapter(tiny, tmp_path):
    "TRL 1.16.0 copies an adapter on layers, as we do. An adapter on parameters falls back to the base model there."
    for kw in (dict(LORA), dict(r=4, target_modules=[], target_parameters=['self_attn.q_proj.weight', 'mlp.up_proj.weight'])):
        try: config = LoraConfig(**kw); adapter(tiny, config)
        except (ValueError, TypeError, NotImplementedError): continue  # this version of peft has no such adapters
        a, _ = ours(tiny, tmp_path, model=lambda: adapter(tiny, LoraConfig(**kw)), max_steps=1)
        assert first(a)['loss'] == pytest.approx(LN2, abs=1e-5), kw
    b, _ = theirs(tiny, tmp_path, model=lambda: adapter(tiny), max_steps=1)
    assert first(b)['loss'] == pytest.approx(LN2, abs=1e-5)


@trl
def test_a5_a_checkpoint_given_as_the_model(tiny, tmp_path):
    run(dpo_nb, tiny, tmp_path, max_steps=2, save_strategy='steps', save_steps=2)
    checkpoint = str(tmp_path/'dpo_nb'/'checkpoint-2')
    (a, told), (b, said) = (f(checkpoint, tmp_path/'next', max_steps=1) for f in (ours, theirs))
    assert first(b)['loss'] == pytest.approx(LN2, abs=1e-6) and not said
    assert [s for s in told if 'half-trained weights become the reference' in s]


@trl
def test_a6_ends_that_are_cut_off_and_rows_that_vanish(tiny, tmp_path):
    logs, said = theirs(tiny, tmp_path, max_length=50, max_steps=1)
    assert 'loss' in first(logs) and not [s for s in said if 'max_length' in s or 'trunc' in s]
    logs, said = ours(tiny, tmp_path, max_length=50, max_steps=6)   # each row once; of 24 answers 6 are longer, and one fits to the token
    assert [s for s in said if 'only one side keeps its end-of-sequence token' in s]
    assert sum(h['data/frac_truncated'] for h in steps(logs))/6 == pytest.approx(7/24, abs=1e-6)


@trl
def test_a7_a_boundary_that_moves_is_counted_here(tiny, tmp_path):
    data = Dataset.from_list([dict(prompt=f'The sky is{" "*(i%2)}', chosen=f'blue {i}.' if i%2 else f' blue {i}.', rejected=f'red {i}.' if i%2 else f' red {i}.') for i in range(8)])
    _, said = theirs(tiny, tmp_path, data=data, max_steps=1)
    assert not [s for s in said if '4 of 8' in s]
    _, said = ours(tiny, tmp_path, data=data, max_steps=1)
    assert [s for s in said if 'in 4 of 8 rows the prompt' in s]


@trl
def test_a8_two_beginnings(tiny, tmp_path, trainer):
    import trl
    def twice(lib):
        tok = load_toy_tokenizer()
        tok.add_special_tokens(dict(bos_token='<|im_start|>'))
        data = Dataset.from_list(text()).map(lambda r: dict(prompt=tok.bos_token*2+r['prompt']))
        args = lib.DPOConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=2, bf16=False, use_cpu=True, report_to='none', save_strategy='no', disable_tqdm=True)
        return lib.DPOTrainer(tiny, args=args, train_dataset=data, processing_class=tok)
    with Heard(['trl']) as said: twice(trl).train()
    assert not said
    assert [f.name for f in twice(dpo_nb).doctor() if f.name == 'two BOS tokens' and f.verdict == 'warn']


@trl
def test_a9_the_prompt_again_in_the_answers(tiny, tmp_path):
    logs, said = theirs(tiny, tmp_path, data=repeated(), max_steps=1)
    assert 'loss' in first(logs) and not [s for s in said if 'repeat' in s or 'twice' in s]
    with pytest.raises(ValueError, match='prompt'): ours(tiny, tmp_path, data=repeated(), max_steps=1)


# a10, accumulation: test_02, and TRL 1.16.0 does the same (test_trl_trainer). a11, sums and means: sigmoid and sigmoid_norm are two losses, each with its unit (losses/14).

@trl
def test_a12_dropout_in_functions(tiny, tmp_path):
    def noisy(): return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32, attention_dropout=.5)
    (a, told), (b, said) = (f(tiny, tmp_path, model=noisy, max_steps=1) for f in (ours, theirs))
    assert abs(first(b)['loss']-LN2) > 1e-4 and not said and first(a)['loss'] == pytest.approx(LN2, abs=1e-6) and [s for s in told if 'dropout is switched off' in s]


@trl
def test_a13_metrics_of_another_quantity():
    from trl_stub import trl_loss
    mask, per = torch.zeros(2, 102, dtype=torch.long), torch.zeros(2, 101)
    mask[0, 1:101], mask[1, 1:11] = 1, 1
    per[0, :100], per[1, :10] = .05, .4   # +5 nats over 100 tokens, +4 over 10
    loss, _, seen = trl_loss(per-1, torch.zeros_like(per)-1, mask, loss_type='ipo', beta=.1)
    at_zero, _, _ = trl_loss(per*0-1, per*0-1, mask, loss_type='ipo', beta=.1)
    assert loss > at_zero and seen['rewards/margins'] == pytest.approx(.1, abs=1e-5) and seen['rewards/accuracies'] == 1.  # ours: test_08


@trl
def test_a14_dead_data_and_a_dead_beta(tiny, tmp_path):
    twins = rows(lambda r: dict(rejected=r['chosen']))
    logs, said = theirs(tiny, tmp_path, data=twins)
    assert all(h['loss'] == pytest.approx(LN2, abs=1e-5) for h in steps(logs)) and not said
    with pytest.raises(ValueError, match='nothing to learn'): ours(tiny, tmp_path, data=twins)
    logs, said = theirs(tiny, tmp_path, beta=0.)
    assert all(h['grad_norm'] == 0 for h in steps(logs)) and not said
    with pytest.raises(ValueError, match='beta'): ours(tiny, tmp_path, beta=0.)


def test_a14_a_run_that_stands_still_is_told_why(tiny, tmp_path):
    _, said = ours(tiny, tmp_path, beta=1e-6, max_steps=30, logging_steps=5)
    assert len([s for s in said if 'has been 0.6931 for' in s and 'beta=1e-06' in s]) == 1

# a15, fast paths against the plain one: tests/test_fast.py
