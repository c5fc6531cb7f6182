"Runs that are killed, disks that are full, numbers that are none: the trainer goes on with the same bits, or says what happened."
import json, math, os, resource, signal, subprocess, sys, time
from pathlib import Path

import pytest, torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, EarlyStoppingCallback

from dpo_nb import DPOConfig, DPOTrainer
from dpo_nb.toy import load_toy_model, load_toy_pairs, load_toy_tokenizer
from dpo_nb.train.checkpoints import checkpoint_flaw

pytestmark = pytest.mark.filterwarnings('ignore')
LORA = dict(r=4, target_modules=['q_proj', 'v_proj'])


@pytest.fixture(autouse=True)
def one_thread():
    "The same bits need the same number of threads as the process that is killed."
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def build(folder, model=None, rows=12, adapter=False, **kw):
    "A trainer on the toy model; arguments of the config and of the trainer may be mixed."
    own = {k: kw.pop(k) for k in ('eval_dataset', 'callbacks') if k in kw}
    args = DPOConfig(str(folder), **(dict(max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=1, bf16=False, use_cpu=True,
                                          save_strategy='no', report_to='none', disable_tqdm=True, seed=1) | kw))
    return DPOTrainer(model or load_toy_model(), args=args, train_dataset=load_toy_pairs()['train'].select(range(rows)), processing_class=load_toy_tokenizer(),
                      peft_config=LoraConfig(**LORA) if adapter else None, **own)


def numbers(folder, step):
    "What the run's newest state logged, step by step, without times."
    logs = json.loads((Path(folder)/f'checkpoint-{step}'/'trainer_state.json').read_text())['log_history']
    return [{k: v for k, v in h.items() if 'runtime' not in k and 'per_second' not in k} for h in logs if 'loss' in h]


@pytest.mark.parametrize('kw', [dict(), dict(sync_ref_model=True, ref_model_sync_steps=2), dict(adapter=True, sync_ref_model=True, ref_model_sync_steps=2), dict(loss_type='bco')],
                         ids=['whole model', 'synced', 'synced adapter', 'a loss that remembers'])
def test_kill_9_and_resume_equals_the_run_that_nobody_disturbed(tmp_path, kw):
    kw |= dict(max_steps=6, save_strategy='steps', save_steps=1)
    build(tmp_path/'whole', **kw).train()
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_survival import build; build({str(tmp_path/'killed')!r}, **{kw!r}).train()"
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | dict(OMP_NUM_THREADS='1'))
    began = time.monotonic()
    while not (tmp_path/'killed'/'checkpoint-3').exists():  # it is being written now, or just was
        assert p.poll() is None and time.monotonic()-began < 200, p.stderr.read().decode()[-2000:]
        time.sleep(.02)
    os.kill(p.pid, signal.SIGKILL); p.communicate()
    build(tmp_path/'killed', **kw).train(resume_from_checkpoint=True)
    assert numbers(tmp_path/'killed', 6) == numbers(tmp_path/'whole', 6)
    a, b = (tmp_path/r/'checkpoint-6'/('adapter_model' if 'adapter' in kw else 'model') for r in ('whole', 'killed'))
    assert a.with_suffix('.safetensors').read_bytes() == b.with_suffix('.safetensors').read_bytes()


@pytest.fixture
def trainer(tmp_path): return lambda out='out', **kw: build(tmp_path/out, **kw)


def test_a_half_written_checkpoint_is_skipped_and_named(trainer, tmp_path, monkeypatch):
    import dpo_nb.train.checkpoints as module
    said = []
    monkeypatch.setattr(module._logger, 'warning', said.append)
    trainer(save_strategy='steps', save_steps=1).train()
    last = tmp_path/'out'/'checkpoint-3'
    os.truncate(last/'optimizer.pt', 1000)
    t = trainer(save_strategy='steps', save_steps=1)
    t.train(resume_from_checkpoint=True)
    assert len(said) == 1 and 'checkpoint-3 is skipped' in said[0] and 'optimizer.pt is cut off' in said[0]
    assert t.state.global_step == 3 and checkpoint_flaw(last) is None
    os.truncate(last/'optimizer.pt', 1000)
    with pytest.raises(ValueError, match='cannot be resumed: optimizer.pt is cut off'): trainer().train(resume_from_checkpoint=str(last))
    with pytest.raises(ValueError, match='no whole checkpoint'): trainer('empty').train(resume_from_checkpoint=True)


@pytest.mark.parametrize('limit', [2_000_000, 5_000_000], ids=['in the weights', 'in the optimizer'])
def test_a_disk_that_fills_up_costs_one_checkpoint(trainer, tmp_path, limit):
    "A limit on the size of files stands for a full disk: writing fails in the middle of a file."
    trainer(save_strategy='steps', save_steps=1, max_steps=2).train()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    t = trainer(save_strategy='steps', save_steps=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match='could not be written') as e: t.train(resume_from_checkpoint=True)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 'checkpoint-3' in str(e.value) and 'The newest whole checkpoint is' in str(e.value) and 'checkpoint-2' in str(e.value)
    assert not (tmp_path/'out'/'checkpoint-3').exists() and checkpoint_flaw(tmp_path/'out'/'checkpoint-2') is None
    trainer(save_strategy='steps', save_steps=1).train(resume_from_checkpoint=True)
    assert checkpoint_flaw(tmp_path/'out'/'checkpoint-3') is None


def test_a_folder_that_cannot_be_written_is_refused_at_the_beginning(trainer, tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(OSError, match='cannot be written'): trainer('file/below', save_strategy='steps')


def test_a_loss_that_is_no_number_names_step_and_rows(trainer):
    t = trainer(per_device_train_batch_size=1, train_sampling_strategy='sequential', max_steps=6)
    words = [set(r['prompt_ids'] + r['chosen_ids'] + r['rejected_ids']) for r in t.train_dataset]
    row, token = next((i, min(new)) for i in range(1, 6) if (new := words[i] - set().union(*words[:i])))
    t.model.lm_head.weight.data[token] = math.nan  # tied: the embedding too
    with pytest.raises(FloatingPointError) as e: t.train()
    assert f'loss of step' in str(e.value)


def test_rows_are_named_when_the_reference_breaks(trainer):
    t = trainer(per_device_train_batch_size=2, train_sampling_strategy='sequential')
    t.ref_model.model.embed_tokens.weight.data[t.train_dataset[3]['chosen_ids'][0]] = math.nan
    with pytest.raises(FloatingPointError, match=r'the reference gives no number to .*row'): t.train()


def test_an_evaluation_without_a_number_warns_once_and_names_the_rows(trainer, monkeypatch):
    import dpo_nb.train.watching as module
    said = []
    monkeypatch.setattr(module._logger, 'warning', said.append)
    held = load_toy_pairs()['test'].select(range(6))
    t = trainer(eval_dataset=dict(a=held, b=held), eval_strategy='steps', eval_steps=1, max_steps=2, per_device_eval_batch_size=1)
    of_training = {i for r in t.train_dataset for k in ('prompt_ids', 'chosen_ids', 'rejected_ids') for i in r[k]}
    words = [set(r['prompt_ids'] + r['chosen_ids'] + r['rejected_ids']) for r in t.eval_dataset['a']]
    row, token = next((i, min(new)) for i, w in enumerate(words) if (new := w - of_training - set().union(*words[:i])))
    t.ref_model.model.embed_tokens.weight.data = t.ref_model.model.embed_tokens.weight.data.clone()
    t.ref_model.model.embed_tokens.weight.data[token] = math.nan
    t.ref_model.lm_head.weight = torch.nn.Parameter(torch.nan_to_num(t.ref_model.model.embed_tokens.weight.data), requires_grad=False)  # only who reads the word is broken
    t.train()
    assert t.state.global_step == 2 and len(said) == 4, said  # two sets, two evaluations
    assert all(f'on the eval_{n} dataset after step {i}' in s and f'the reference gives no number to row {row} of' in s for s, (i, n) in zip(said, ((1, 'a'), (1, 'b'), (2, 'a'), (2, 'b'))))


def test_a_precomputed_reference_is_known_again_after_a_resume(trainer, monkeypatch):
    "The policy answers as the reference before it is trained, and must not be taken for it afterwards."
    import dpo_nb.train.saving as module
    said = []
    monkeypatch.setattr(module._logger, 'warning', said.append)
    for steps in (2, 3): trainer(precompute_ref_log_probs=True, save_strategy='steps', save_steps=2, max_steps=steps).train(resume_from_checkpoint=steps == 3)
    assert not [s for s in said if 'is not the one of the checkpoint' in s]


def test_another_reference_after_a_resume_is_reported(trainer, tmp_path, monkeypatch):
    import dpo_nb.train.saving as module
    trainer(save_strategy='steps', save_steps=2, max_steps=2).train()
    said = []
    monkeypatch.setattr(module._logger, 'warning', said.append)
    trainer(save_strategy='steps', save_steps=2, max_steps=3).train(resume_from_checkpoint=True)
    assert not said
    trainer(save_strategy='steps', save_steps=2, max_steps=4, model=AutoModelForCausalLM.from_pretrained(tmp_path/'out'/'checkpoint-2')).train(resume_from_checkpoint=True)
    assert [s for s in said if 'is not the one of the checkpoint' in s]


def test_early_stopping_and_the_best_model(trainer):
    t = trainer(max_steps=8, eval_dataset=load_toy_pairs()['test'].select(range(6)), eval_strategy='steps', eval_steps=1, save_strategy='steps', save_steps=1, learning_rate=3e-2,
                load_best_model_at_end=True, metric_for_best_model='eval_loss', greater_is_better=False, callbacks=[EarlyStoppingCallback(early_stopping_patience=1)])
    t.train()
    evals = [h['eval_loss'] for h in t.state.log_history if 'eval_loss' in h]
    assert t.state.best_metric == min(evals) and t.state.global_step <= 8
    assert t.evaluate()['eval_loss'] == pytest.approx(min(evals), rel=1e-5)
