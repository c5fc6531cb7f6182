"Every field that DPOConfig adds to TrainingArguments, set to something else, changes what it is there for."
from collections import Counter
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Callable
import json, shutil, tempfile

import datasets, pytest, torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from dpo_nb import DPOConfig, DPOTrainer, DataCollatorForPreference
from dpo_nb.toy import load_toy_model, load_toy_pairs, load_toy_tokenizer, toy_path
from dpo_nb.train.offloading import OffloadActivations

pytestmark = pytest.mark.filterwarnings('ignore')
LN2 = .693147


# --- what can be seen of a run

class Recorder:
    "Counts calls, and keeps what they were given, without changing them."
    def __init__(self, patch): self.patch, self.calls = patch, {}

    def watch(self, owner, name, keep):
        real = vars(owner)[name]
        plain = real.__func__ if isinstance(real, classmethod) else real
        def seen(*args, **kw):
            self.calls.setdefault(name, []).append(keep(*args, **kw))
            return plain(*args, **kw)
        self.patch.setattr(owner, name, classmethod(seen) if isinstance(real, classmethod) else seen)


@dataclass
class Run:
    "A run of three steps on six pairs, and what is left of it."
    trainer: Any
    calls: dict
    files: set
    samples: list
    start: Any  # the reference's first weight before training
    asked: int  # forward passes of the reference

    @property
    def losses(self): return [round(h['loss'], 5) for h in self.trainer.state.log_history if 'loss' in h]

    def logged(self, key): return [h[key] for h in self.trainer.state.log_history if 'loss' in h and key in h]

    @property
    def batch(self): return self.trainer.data_collator([self.trainer.train_dataset[i] for i in range(4)])

    @property
    def reference(self): return next(self.trainer.ref_model.parameters())


def talk(r): return {k: [*r[k], dict(role='user', content='Why?'), dict(role='assistant', content='So.')] for k in ('chosen', 'rejected')}

@cache
def pairs(kind=''):
    rows = load_toy_pairs()['train'].select(range(6)).select_columns(['prompt', 'chosen', 'rejected'])
    if kind == 'turns': return rows.map(talk)
    return rows.add_column('w', [2.]*6).add_column('m', [1.]*6)


def mixture():
    "A tiny mixture of experts with random weights."
    torch.manual_seed(0)
    size = dict(vocab_size=len(load_toy_tokenizer()), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model('mixtral', **size, num_local_experts=4, num_experts_per_tok=2))


MODELS = {'': load_toy_model, 'by name': lambda: str(toy_path()), 'with dropout': lambda: load_toy_model(attention_dropout=.3), 'mixture': mixture}


def run(folder, patch, model='', data='', **settings):
    seen = Recorder(patch)
    seen.watch(AutoModelForCausalLM, 'from_pretrained', lambda cls, *a, **kw: kw)
    seen.watch(Dataset, 'map', lambda self, *a, num_proc=None, **kw: num_proc)
    seen.watch(DataCollatorForPreference, '__call__', lambda self, examples, *a: len(examples))
    seen.watch(OffloadActivations, '__enter__', lambda self: 1)
    patch.setattr(datasets.config, 'HF_DATASETS_CACHE', Path(folder)/'cache')  # where precomputed log-probs are kept
    args = DPOConfig(str(folder), **dict(max_steps=3, logging_steps=1, per_device_train_batch_size=2, learning_rate=1e-2, lr_scheduler_type='constant', max_grad_norm=0., report_to='none',
                                         use_cpu=True, bf16=False, disable_tqdm=True, save_strategy='no', gradient_checkpointing=False) | settings)
    t = DPOTrainer(MODELS[model](), args=args, train_dataset=pairs(data), processing_class=load_toy_tokenizer())
    made = {k: list(v) for k, v in seen.calls.items()}  # until training began
    ref, asked = getattr(t, 'ref_model', None), Counter()
    if ref is not None: ref.get_input_embeddings().register_forward_hook(lambda *a: asked.update(n=1))
    start = None if ref is None else next(ref.parameters()).detach().clone()
    t.train()
    file = Path(folder)/'samples.jsonl'
    samples = [json.loads(l) for l in file.read_text().splitlines()] if file.is_file() else []
    return Run(t, made | {f'{k} all': v for k, v in seen.calls.items()}, {p.name for p in Path(folder).rglob('*')}, samples, start, asked['n'])


before = {}  # plain runs, by their settings

def attempt(**settings):
    "A run, or the error that it ends with."
    folder = tempfile.mkdtemp()
    with pytest.MonkeyPatch.context() as patch:
        try: return run(folder, patch, **settings)
        except (ValueError, TypeError) as e: return e
        finally: shutil.rmtree(folder, ignore_errors=True)


# --- each field: beside which settings, to what, and where that shows

@dataclass
class Case:
    value: Any
    look: Callable                                 # run → what must change
    base: dict = field(default_factory=dict)       # settings of both runs
    want: Callable = lambda old, new: True         # more that must hold


def loss(r): return r.losses
def first(r): return r.losses[0]
def ids(r): return r.batch['input_ids'].tolist()
def moved(r): return round((r.reference - r.start).abs().max().item(), 6)
def sampled(r): return sorted({s['step'] for s in r.samples})
def words(r): return [len(load_toy_tokenizer()(s['text'])['input_ids']) for s in r.samples if s['step'] == 0]
def message(r): return str(r) if isinstance(r, Exception) else ''
def loaded(key): return lambda r: r.calls['from_pretrained'][0].get(key)

sync = dict(sync_ref_model=True, ref_model_sync_steps=1)
CASES = dict(
    # model
    model_init_kwargs=Case(dict(dtype='bfloat16'), lambda r: r.trainer.model.dtype, dict(model='by name'), lambda old, new: (old, new) == (torch.float32, torch.bfloat16)),
    trust_remote_code=Case(True, loaded('trust_remote_code'), dict(model='by name'), lambda old, new: (old, new) == (False, True)),
    router_aux_loss_coef=Case(.5, lambda r: (first(r)-LN2, r.logged('aux_loss')[0]), dict(model='mixture'),
                              lambda old, new: abs(old[0]-.001*old[1]) < 1e-3 and abs(new[0]-.5*new[1]) < 1e-3),
    disable_dropout=Case(False, first, dict(model='with dropout'), lambda old, new: abs(old-LN2) < 1e-4 < abs(new-LN2)),
    # data
    dataset_num_proc=Case(2, lambda r: max(n or 0 for n in r.calls['map']), want=lambda old, new: (old, new) == (0, 2)),
    max_length=Case(30, lambda r: r.batch['input_ids'].shape[1], want=lambda old, new: new == 30 < old),
    truncation_mode=Case('keep_end', ids, dict(max_length=30)),
    padding_free=Case(True, message, dict(disable_dropout=False), lambda old, new: old == '' and 'padding_free=True is not possible' in new),
    pad_to_multiple_of=Case(32, lambda r: r.batch['input_ids'].shape[1], want=lambda old, new: new % 32 == 0 and 0 < new-old < 32),
    pad_token=Case('<|im_start|>', lambda r: r.trainer.processing_class.pad_token, want=lambda old, new: new == '<|im_start|>'),
    overlong=Case('drop', lambda r: len(r.trainer.train_dataset), dict(max_length=50), lambda old, new: 0 < new < old == 6),
    loss_on=Case('assistant', lambda r: int(r.batch['completion_mask'].sum()), dict(data='turns'), lambda old, new: new < old),
    weight_column=Case('w', first, want=lambda old, new: abs(new-2*LN2) < 1e-4),
    margin_column=Case('m', first, want=lambda old, new: abs(new - torch.nn.functional.softplus(torch.tensor(1.)).item()) < 1e-4),
    precompute_ref_log_probs=Case(True, lambda r: sorted(c for c in r.trainer.train_dataset.column_names if 'ref' in c), want=lambda old, new: (len(old), len(new)) == (0, 3)),
    precompute_ref_batch_size=Case(6, lambda r: r.calls['__call__'], dict(precompute_ref_log_probs=True), lambda old, new: (old, new) == ([2]*3, [6])),
    # loss
    loss_type=Case('ipo', first, want=lambda old, new: abs(new-25) < 1e-3),
    loss_weights=Case([3.], first, want=lambda old, new: abs(new-3*LN2) < 1e-4),
    beta=Case(.5, lambda r: (r.losses[1], r.logged('rewards/margins')[1], r.logged('objective/margins')[1]), want=lambda old, new: all(a != b for a, b in zip(old, new)) and abs(new[1]-new[2]) < 1e-4),
    ld_alpha=Case(.2, loss), use_weighting=Case(True, loss), f_divergence_type=Case('forward_kl', loss),
    f_alpha_divergence_coef=Case(.9, loss, dict(f_divergence_type='alpha_divergence')),
    label_smoothing=Case(.3, loss, dict(loss_type='cdpo')), discopop_tau=Case(1., loss, dict(loss_type='discopop')),
    simpo_gamma=Case(2., first, dict(loss_type='simpo', beta=2.), lambda old, new: new > old), dpop_lambda=Case(1., loss, dict(loss_type='dpop')),
    rdpo_alpha=Case(.5, first, dict(loss_type='rdpo')), chi_po_clip=Case(1e-3, loss, dict(loss_type='chi_po')),
    # reference
    cache_ref_log_probs=Case(False, lambda r: r.asked, dict(max_steps=6), lambda old, new: new > old),
    sync_ref_model=Case(True, moved, dict(ref_model_sync_steps=1), lambda old, new: old == 0 < new),
    ref_model_mixup_alpha=Case(.1, moved, sync, lambda old, new: 0 < new < old),
    ref_model_sync_steps=Case(512, moved, sync, lambda old, new: new == 0 < old),
    activation_offloading=Case(True, lambda r: len(r.calls.get('__enter__ all', [])), want=lambda old, new: (old, new) == (0, 3)),
    # what the run keeps
    ledger=Case(False, lambda r: r.trainer.ledger and len(r.trainer.ledger), want=lambda old, new: (old, new) == (6, None)),
    sample_prompts=Case(['The tea'], lambda r: {s['prompt'] for s in r.samples}, want=lambda old, new: old == set() and new == {'The tea'}),
    sample_steps=Case(1, sampled, dict(sample_prompts=1, sample_max_new_tokens=2), lambda old, new: old == [0, 3] and new == [0, 1, 2, 3]),
    sample_max_new_tokens=Case(2, words, dict(sample_prompts=1), lambda old, new: new == [2] and old[0] > 2),
)
ELSEWHERE = {}  # fields that do nothing here, with the reason: there is none


def test_every_field_has_its_case():
    own = {f.name for f in fields(DPOConfig)} - {f.name for f in fields(TrainingArguments)}
    assert set(CASES) | set(ELSEWHERE) == own and not set(CASES) & set(ELSEWHERE)
    assert all(c.value != getattr(DPOConfig('unused', report_to='none', use_cpu=True), k) for k, c in CASES.items() if k not in c.base)


@pytest.mark.parametrize('name', CASES)
def test_a_field_changes_what_it_is_for(name):
    case = CASES[name]
    key = repr(sorted(case.base.items()))
    if key not in before: before[key] = attempt(**case.base)
    old, new = (case.look(r) for r in (before[key], attempt(**case.base | {name: case.value})))
    assert old != new and case.want(old, new), f'{name}: {old!r} before, {new!r} with {case.value!r}'
