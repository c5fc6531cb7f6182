"Every sentence of refusal is read by somebody: a scan of the package against the assertions of tests and pages, and the refusals that have no other place."
import ast, json, os, re
from types import SimpleNamespace

import pytest, torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import dpo_nb.train.config as config
from dpo_nb import DPOConfig, DPOTrainer
from dpo_nb.toy import load_toy_model, load_toy_pairs, load_toy_tokenizer
from project import ROOT

pytestmark = pytest.mark.filterwarnings('ignore')


# --- the scan

def texts(node): return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def asserted(source, page):
    "Pieces of text that a test or page compares something with."
    out, readers = set(), {'refused', 'test_fail', 'startswith', 'endswith', 'says', 'raises', 'parametrize', 'refuses'}
    for n in ast.walk(ast.parse(re.sub(r'^\s*[%!].*$', '', source, flags=re.M))):
        if (isinstance(n, ast.keyword) and n.arg in ('contains', 'match', 'says') or isinstance(n, ast.Compare) and any(isinstance(o, (ast.In, ast.Eq)) for o in n.ops)
            or isinstance(n, ast.Call) and getattr(n.func, 'id', getattr(n.func, 'attr', '')) in readers or not page and isinstance(n, (ast.Tuple, ast.Dict))): out |= set(texts(n))
    return {re.sub(r'\\', '', k) for k in out if len(k) >= 5 and not re.fullmatch(r'[A-Za-z_]+', k)}


def reads(known, said):
    "Is it a part of what is said, or does it go over the edge of it, into a place that is filled in?"
    return known in said or len(said) >= 8 and said in known or any(known.startswith(said[-n:]) or known.endswith(said[:n]) for n in range(6, min(len(known), len(said))))


def test_every_refusal_is_read_by_a_test_or_a_page():
    known = set().union(*(asserted(p.read_text(encoding='utf-8'), False) for p in (ROOT/'tests').glob('*.py')))
    for p in (ROOT/'nbs').rglob('*.ipynb'):
        for c in json.loads(p.read_text(encoding='utf-8'))['cells']:
            source = ''.join(c['source'])
            if c['cell_type'] == 'code' and not source.lstrip().startswith('#| export'): known |= asserted(source, True)
    unread, total = [], 0
    for f in sorted((ROOT/'dpo_nb').rglob('*.py')):
        for n in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
            said = [s for s in texts(n.exc) if len(s.strip()) > 5] if isinstance(n, ast.Raise) and n.exc is not None else []
            total += bool(said)
            if said and not any(reads(k, s) for k in known for s in said): unread.append(f'{f.relative_to(ROOT)}:{n.lineno}: {" … ".join(said)[:120]}')
    assert total > 200 and not unread, '\n'.join(unread)


# --- those without a page

def rows(n=4): return load_toy_pairs()['train'].select(range(n))


def dpo(tmp_path, model=None, peft_config=None, compute_metrics=None, set=(), **kw):
    args = DPOConfig(str(tmp_path/'out'), **(dict(max_steps=1, per_device_train_batch_size=2, bf16=False, use_cpu=True, save_strategy='no', report_to='none', disable_tqdm=True) | kw))
    for k, v in dict(set).items(): setattr(args, k, v)
    return DPOTrainer(model or load_toy_model(), args=args, train_dataset=rows(), processing_class=load_toy_tokenizer(), peft_config=peft_config, compute_metrics=compute_metrics)


def test_an_adapter_config_that_is_none(tmp_path):
    with pytest.raises(TypeError, match='peft_config must be a peft.PeftConfig such as LoraConfig, got dict'): dpo(tmp_path, peft_config=dict(r=4))


@pytest.mark.parametrize('launcher', ['FSDP', 'DEEPSPEED'])
def test_precomputing_with_an_adapter_in_pieces(tmp_path, monkeypatch, launcher):
    from dpo_nb.train.trainer import prepare_models
    args = DPOConfig(str(tmp_path), precompute_ref_log_probs=True, bf16=False, use_cpu=True, report_to='none')
    monkeypatch.setenv(f'ACCELERATE_USE_{launcher}', 'true')
    with pytest.raises(ValueError, match='needs the model in its place before training'): prepare_models(load_toy_model(), None, LoraConfig(r=2, target_modules=['q_proj']), args, len)


def test_a_loss_that_asks_for_more_than_there_is():
    from dpo_nb.losses.registry import bind_losses
    def mine(p, *, temperature): return p.delta*temperature
    with pytest.raises(TypeError, match='and the settings are') as e: bind_losses(mine, beta=.1)
    assert "needs ['temperature']" in str(e.value)


def test_a_setting_that_no_loss_has():
    from dpo_nb.losses.objective import Objective
    with pytest.raises(TypeError, match="is no setting of an objective; choose among") as e: Objective('sigmoid', bata=.1)
    assert "['bata']" in str(e.value) and "'beta'" in str(e.value)


def test_what_the_image_collator_needs():
    from dpo_nb.data.vision import DataCollatorForVisionPreference
    with pytest.raises(TypeError, match='must be a transformers processor with a tokenizer and an image processor'): DataCollatorForVisionPreference(load_toy_tokenizer())


def test_a_weight_that_leaves_nothing(tmp_path):
    from dpo_nb.run.job import load_mixture
    rows(4).to_json(tmp_path/'a.jsonl')
    with pytest.raises(ValueError, match='leaves none of its 4 rows'): load_mixture([dict(path=str(tmp_path/'a.jsonl'), weight=.1)])


# --- Liger's kernels, as far as a CPU goes: the package is a stand-in, and so is the GPU

def settings(**kw): return SimpleNamespace(**(dict(use_liger_kernel=True, loss_type=['sigmoid'], precompute_ref_log_probs=False, use_cpu=False, liger_kernel_config=None) | kw))


@pytest.mark.parametrize('package, gpu, missing', [(False, False, 'the package liger-kernel and a GPU'), (True, False, 'needs a GPU, not found'), (False, True, 'needs the package liger-kernel, not found')])
def test_liger_says_in_one_sentence_what_is_missing(monkeypatch, package, gpu, missing):
    monkeypatch.setattr(config.importlib.util, 'find_spec', lambda name: package or None)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    with pytest.raises(ValueError, match=missing): config.check_liger(settings())


def test_liger_leaves_the_head_to_us(monkeypatch):
    monkeypatch.setattr(config.importlib.util, 'find_spec', lambda name: True)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    c = settings(liger_kernel_config=dict(rope=False))
    config.check_liger(c)
    assert config.liger_kernels(c) == dict(rope=False, fused_linear_cross_entropy=False) and c.liger_kernel_config == dict(rope=False)
    with pytest.raises(ValueError, match='goes with one loss'): config.check_liger(settings(loss_type=['sigmoid', 'sft']))
    with pytest.raises(ValueError, match='does not go with precompute_ref_log_probs'): config.check_liger(settings(precompute_ref_log_probs=True))


def test_liger_and_compute_metrics(tmp_path):
    with pytest.raises(ValueError, match='compute_metrics does not go with use_liger_kernel=True'): dpo(tmp_path, compute_metrics=lambda p: {}, set=dict(use_liger_kernel=True))


def test_liger_gets_policy_and_reference_and_the_log_probs_stay_fused(tmp_path, monkeypatch):
    import sys, types
    import transformers.integrations.liger as of_transformers
    import dpo_nb.model.forward as forward
    got, fused = [], []
    stand_in = types.ModuleType('liger_kernel.transformers')
    stand_in._apply_liger_kernel_to_instance = lambda model, **kw: got.append((model, kw))
    monkeypatch.setitem(sys.modules, 'liger_kernel', types.ModuleType('liger_kernel')), monkeypatch.setitem(sys.modules, 'liger_kernel.transformers', stand_in)
    monkeypatch.setattr(of_transformers, 'is_liger_kernel_available', lambda: True)
    real = forward.score_hidden
    monkeypatch.setattr(forward, 'score_hidden', lambda *args, **kw: fused.append(1) or real(*args, **kw))
    plain = dpo(tmp_path); plain.train()
    fused.clear()
    t = dpo(tmp_path, set=dict(use_liger_kernel=True, liger_kernel_config=dict(fused_linear_cross_entropy=False)))
    t.train()
    assert {id(m) for m, _ in got} == {id(t.model), id(t.ref_model)} and all(kw == dict(fused_linear_cross_entropy=False) for _, kw in got)
    losses = [[h['loss'] for h in x.state.log_history if 'loss' in h] for x in (plain, t)]
    assert fused and losses[0] == losses[1]


# --- and a few of other pages

def test_a_processor_whose_tokenizer_cannot_pad():
    import tiny_vlms
    from dpo_nb.data.vision import DataCollatorForVisionPreference
    processor = tiny_vlms.qwen2_vl()[0]
    processor.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="the processor's tokenizer has no pad token"): DataCollatorForVisionPreference(processor)


def test_views_of_nothing():
    from dpo_nb.views.brush import Trails
    from dpo_nb.views.run import RunView
    with pytest.raises(ValueError, match='has no loss in its log; give trainer.state.log_history'): RunView(dict(a=[dict(epoch=1.)]))
    with pytest.raises(ValueError, match='give every path the same number of steps'): Trails(torch.zeros(3, 2), dict(a=torch.zeros(3, 2), b=torch.zeros(4, 2)))


def test_a_ledger_of_another_dataset():
    from dpo_nb.train.ledger import Ledger, suspicious
    ledger = Ledger()
    for step in range(4): ledger.add([0, 9], step, [1., -1.])
    with pytest.raises(ValueError, match='give the dataset that was trained on'): suspicious(ledger, rows(4))


def test_a_mixture_keeps_its_images(tmp_path):
    from datasets import load_from_disk
    from dpo_nb.data.vision import draw_shapes
    from dpo_nb.run.job import load_mixture
    seen = Dataset.from_list([{k: r[k] for k in ('image', 'prompt', 'chosen', 'rejected')} for r in draw_shapes(3)])
    seen.save_to_disk(tmp_path/'seen'), rows(2).select_columns(['prompt', 'chosen', 'rejected']).save_to_disk(tmp_path/'read')
    mixed = load_mixture([dict(path=str(tmp_path/'seen'), weight=2), dict(path=str(tmp_path/'read'))])
    assert len(mixed) == 8 and [r['image'] is not None for r in mixed] == [True]*6 + [False]*2
    assert mixed[0]['image'].tobytes() == seen[0]['image'].tobytes() == mixed[3]['image'].tobytes()


def test_an_image_that_comes_late_in_a_stream_is_not_dropped(tmp_path):
    from datasets import IterableDataset
    def late():
        for i, r in enumerate(rows(24)): yield {k: r[k] for k in ('prompt', 'chosen', 'rejected')} | (dict(images=['x.png']) if i == 20 else {})
    args = DPOConfig(str(tmp_path/'out'), max_steps=12, per_device_train_batch_size=2, bf16=False, use_cpu=True, save_strategy='no', report_to='none', disable_tqdm=True)
    t = DPOTrainer(load_toy_model(), args=args, train_dataset=IterableDataset.from_generator(late), processing_class=load_toy_tokenizer())
    with pytest.raises(ValueError, match='row 20 of the train dataset has images, and the first rows have none'): t.train()


def test_a_loss_that_cannot_be_a_key_trains(tmp_path):
    from dataclasses import dataclass
    @dataclass
    class Mine:
        scale:float = 1.
        def __call__(self, p, *, beta=.1): return -torch.nn.functional.logsigmoid(self.scale*beta*p.delta)
    t = dpo(tmp_path, loss_type=[Mine()], logging_steps=1)
    t.train()
    assert abs(t.state.log_history[0]['loss'] - .693147) < 1e-5 and t.state.log_history[0]['objective/margins'] == 0
