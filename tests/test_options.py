"What the trainer refuses, and what its own options do, where TRL has nothing to compare with; the hub is a small server of ours."
import importlib.util, json, math, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest, torch, yaml
from conftest import live_trl
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from dpo_nb import DPOConfig, DPOTrainer
from dpo_nb.toy import load_helpful_mini, load_toy_model, load_toy_pairs, load_toy_tokenizer
from project import ROOT
from test_survival import LORA, build, one_thread  # noqa: F401, a fixture

pytestmark = pytest.mark.filterwarnings('ignore')
LN2 = math.log(2)
pairs = load_toy_pairs()['train']


def rows(n=8): return pairs.select(range(n))
def losses(t): return [h['loss'] for h in t.state.log_history if 'loss' in h]


@pytest.fixture
def dpo(tmp_path):
    "A trainer of the toy model on rows that are given."
    def make(data=None, model=None, **kw):
        own = {k: kw.pop(k) for k in ('ref_model', 'eval_dataset', 'peft_config') if k in kw}
        args = DPOConfig(str(tmp_path/'out'), **(dict(max_steps=2, per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=1, bf16=False, use_cpu=True, save_strategy='no',
                                                      report_to='none', disable_tqdm=True, seed=1, train_sampling_strategy='sequential') | kw))
        return DPOTrainer(model or load_toy_model(), args=args, train_dataset=rows() if data is None else data, processing_class=load_toy_tokenizer(), **own)
    return make


# --- names

@pytest.mark.parametrize('name, says', [
    ('beta', 'moved to DPOConfig.beta'), ('loss_type', 'moved to DPOConfig.loss_type'), ('max_length', 'moved to DPOConfig.max_length'), ('tokenizer', 'renamed to processing_class'),
    ('max_prompt_length', 'gone: prompts are no longer cut'), ('generate_during_eval', 'now DPOConfig.sample_prompts'), ('precompute_ref_log_probs', 'moved to DPOConfig'), ('ref_adapter_name', '"ref"'),
    ('procesing_class', 'is processing_class meant?'), ('lerning_rate', 'is DPOConfig.learning_rate meant?')])
def test_names_that_moved(name, says):
    with pytest.raises(TypeError) as e: DPOTrainer(load_toy_model(), train_dataset=rows(), **{name: 1})
    assert str(e.value).startswith(f'{name}: ') and says in str(e.value)


@pytest.mark.parametrize('name, says', [('max_prompt_length', 'gone'), ('evaluation_strategy', 'renamed to eval_strategy'), ('rpo_alpha', "['sigmoid', 'sft']"), ('lerning_rate', 'is learning_rate meant?')])
def test_names_that_moved_in_the_config(tmp_path, name, says):
    with pytest.raises(TypeError) as e: DPOConfig(str(tmp_path), **{name: 1})
    assert says in str(e.value)


# --- combinations

@pytest.mark.parametrize('kw, says', [
    (dict(sync_ref_model=True, precompute_ref_log_probs=True), 'choose one of the two'), (dict(sync_ref_model=True, ref_model_mixup_alpha=0.), 'above 0'),
    (dict(sync_ref_model=True, ref_model_sync_steps=0), 'at least 1'), (dict(precompute_ref_batch_size=0), 'whole number above 0'), (dict(overlong='skip'), "['truncate', 'drop', 'error']"),
    (dict(loss_on='prompt'), "['completion', 'assistant']"), (dict(router_aux_loss_coef=-1.), '0 or above'), (dict(margin_column='m', loss_type='ipo'), 'functions of βΔ'),
    (dict(margin_column='m', f_divergence_type='forward_kl'), 'functions of βΔ'), (dict(use_liger_kernel=True, loss_type=['sigmoid', 'hinge']), 'goes with one loss'),
    (dict(use_liger_kernel=True, precompute_ref_log_probs=True), 'does not go with'), (dict(use_liger_kernel=True), 'needs the package liger-kernel'),
    (dict(use_weighting=True, loss_type='aot'), 'use_weighting'), (dict(use_weighting=True, loss_type='aot_unpaired'), 'use_weighting')])
def test_settings_that_do_not_go_together(tmp_path, kw, says):
    with pytest.raises(ValueError) as e: DPOConfig(str(tmp_path), use_cpu=True, **kw)
    assert says in str(e.value)


@pytest.mark.parametrize('make, says', [
    (lambda f: f(rows().to_iterable_dataset(), precompute_ref_log_probs=True), 'IterableDataset'),
    (lambda f: f(sync_ref_model=True, peft_config=PromptTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=2), gradient_checkpointing=False), 'there is none for PROMPT_TUNING'),
    (lambda f: f(sync_ref_model=True, peft_config=LoraConfig(**LORA), ref_model=load_toy_model()), 'cannot mix an adapter into the whole model'),
    (lambda f: f(weight_column='w'), "weight_column='w' is no column"), (lambda f: f(rows().add_column('m', [math.nan]*8), margin_column='m'), 'must be a finite number'),
    (lambda f: f(overlong='error', max_length=40), "overlong='error'"), (lambda f: f(overlong='drop', max_length=4), 'leaves nothing')])
def test_refused_when_the_trainer_is_made(dpo, make, says):
    with pytest.raises(ValueError) as e: make(dpo)
    assert says in str(e.value)


def test_new_rows_after_training_without_a_reference(dpo, tmp_path, monkeypatch):
    monkeypatch.setattr('datasets.config.HF_DATASETS_CACHE', tmp_path/'cache')  # where no earlier run has left the answer
    t = dpo(precompute_ref_log_probs=True, eval_dataset=pairs.select(range(20, 24))); t.train()
    assert math.isfinite(t.evaluate()['eval_loss'])
    with pytest.raises(ValueError, match='keeps no reference'): t.evaluate(pairs.select(range(30, 34)))
    t = dpo(precompute_ref_log_probs=True, peft_config=LoraConfig(**LORA)); t.train()
    assert math.isfinite(t.evaluate(pairs.select(range(30, 34)))['eval_loss'])  # the adapter can be switched off


# --- the options

def test_precomputing_leaves_the_order_of_the_data_and_the_noise_alone(dpo):
    a, b = (dpo(precompute_ref_log_probs=p, train_sampling_strategy='random', max_steps=4) for p in (False, True))
    for t in (a, b): t.train()
    assert losses(a) == pytest.approx(losses(b), rel=1e-5)


def test_overlong_pairs_are_dropped_and_the_others_train_as_alone(dpo):
    kept = [i for i, r in enumerate(dpo().train_dataset) if len(r['prompt_ids']) + max(len(r['chosen_ids']), len(r['rejected_ids'])) <= 50]
    a, b = dpo(overlong='drop', max_length=50), dpo(rows().select(kept))
    for t in (a, b): t.train()
    assert 0 < len(kept) < 8 and losses(a) == losses(b)


def test_loss_on_the_assistant(dpo):
    def answer(r): return {k: [dict(role='assistant', content='look(up)'), dict(role='tool', content='found it'), *r[k]] for k in ('chosen', 'rejected')}
    data = rows().map(answer)
    a, b, c = dpo(data), dpo(data, loss_on='assistant'), dpo(loss_on='assistant')
    n = {t: t.evaluate(d)['eval_logps/chosen'] for t, d in ((a, data), (b, data))}
    assert n[b] > n[a]  # fewer tokens, less negative
    b.train(); c.train(); d = dpo(); d.train()
    assert losses(b)[0] == pytest.approx(LN2, abs=1e-6) and losses(c) == losses(d)  # single turns: no difference


def test_weights_scale_the_gradient_and_margins_the_target(dpo):
    data = rows().add_column('two', [2.]*8).add_column('m', [1., 0.]*4)
    plain, two, margin = dpo(data, max_steps=1), dpo(data, weight_column='two', max_steps=1), dpo(data, margin_column='m', max_steps=1)
    for t in (plain, two, margin): t.train()
    norm = lambda t: t.state.log_history[0]['grad_norm']
    assert losses(two)[0] == pytest.approx(2*losses(plain)[0]) and norm(two) == pytest.approx(2*norm(plain), rel=1e-4)
    assert losses(margin)[0] == pytest.approx((math.log(1+math.e)+LN2)/2, rel=1e-5) and margin.state.log_history[0]['rewards/margins'] == 0


def test_tools_change_the_prompt_and_streams_take_every_option(dpo):
    mini = load_helpful_mini('tools')['train'].select(range(4))
    with_tools, without = (dpo(d, max_length=None).train_dataset for d in (mini, mini.remove_columns('tools')))
    assert all(len(a) > len(b) for a, b in zip(with_tools['prompt_ids'], without['prompt_ids']))
    data = rows().add_column('w', [1., 2.]*4)
    kw = dict(weight_column='w', loss_on='assistant', overlong='drop', max_length=60)
    a, b = dpo(data, **kw), dpo(data.to_iterable_dataset(), **kw)
    for t in (a, b): t.train()
    assert losses(a) == pytest.approx(losses(b), rel=1e-6)


# --- evaluation sets of every kind, and loggers

def test_dicts_of_datasets_and_of_streams(dpo):
    from datasets import DatasetDict, IterableDatasetDict
    sets = DatasetDict(a=pairs.select(range(20, 24)), b=pairs.select(range(24, 30)))
    seen = []
    for d in (sets, IterableDatasetDict({k: v.to_iterable_dataset() for k, v in sets.items()}), dict(sets)):
        t = dpo(eval_dataset=d, eval_strategy='steps', eval_steps=2)
        t.train()
        seen.append({k: v for h in t.state.log_history for k, v in h.items() if k in ('eval_a_loss', 'eval_b_loss', 'eval_a_rewards/margins', 'eval_b_logps/chosen')})
    assert len(seen[0]) == 4 and seen[1] == pytest.approx(seen[0], rel=1e-5) and seen[2] == seen[0]


def test_report_to_hands_every_metric_to_the_logger(dpo, monkeypatch):
    "With a stand-in for the logger's package; which one it is changes nothing on our side."
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils
    got = []
    class Logger(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kw): got.append(dict(logs))
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, 'trackio', Logger)
    monkeypatch.setattr(integration_utils, 'is_trackio_available', lambda: True)
    t = dpo(report_to='trackio', eval_dataset=pairs.select(range(20, 24)), eval_strategy='steps', eval_steps=2)
    t.train()
    assert {'loss', 'grad_norm', 'rewards/chosen', 'rewards/margins', 'logps/chosen', 'entropy', 'num_tokens'} <= set(got[0]) and any('eval_rewards/accuracies' in g for g in got)
    assert [g['loss'] for g in got if 'loss' in g] == losses(t)


# --- the hub

class Hub(BaseHTTPRequestHandler):
    "As much of a hub as an upload of small files needs."
    seen, files = [], {}

    def answer(self, body=None):
        data = json.dumps(body or {}).encode()
        self.send_response(200); self.send_header('Content-Type', 'application/json'); self.send_header('Content-Length', str(len(data))); self.end_headers()
        self.wfile.write(data)

    def do_GET(self): self.seen.append(('GET', self.path)); self.answer(dict(name='me', type='user', auth=dict(type='access_token', accessToken=dict(role='write', displayName='t')), orgs=[]))

    def do_POST(self):
        text = self.rfile.read(int(self.headers.get('Content-Length', 0))) if 'chunked' not in self.headers.get('Transfer-Encoding', '') else b''
        self.seen.append(('POST', self.path))
        url = f'http://{self.headers["Host"]}'
        if 'preupload' in self.path: return self.answer(dict(files=[dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(text)['files']]))
        if '/commit/' in self.path:
            for line in text.decode().splitlines():
                d = json.loads(line)
                if d['key'] == 'file': self.files[d['value']['path']] = d['value']['content']
            return self.answer(dict(success=True, commitOid='0'*40, commitUrl=f'{url}/me/mine/commit/{"0"*40}', pullRequestUrl=None))
        self.answer(dict(url=f'{url}/me/mine', name='mine', id='me/mine'))

    def log_message(self, *args): pass


def test_push_to_hub_and_the_model_card(tmp_path, monkeypatch):
    "Against a server of this test; the trainer's files and its card arrive, with our tags."
    server = HTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = ROOT/'tests'/'push_run.py'
    import os, subprocess, sys
    env = os.environ | dict(HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_HUB_OFFLINE='0', HF_TOKEN='hf_test', HF_HUB_DISABLE_XET='1', OMP_NUM_THREADS='1', HF_HOME=str(tmp_path/'home'))
    done = subprocess.run([sys.executable, str(script), str(tmp_path/'mine')], env=env, capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    assert {'README.md', 'config.json', 'model.safetensors', 'tokenizer.json', 'chat_template.jinja'} <= set(Hub.files), sorted(Hub.files)
    import base64
    card = base64.b64decode(Hub.files['README.md']).decode()
    head = yaml.safe_load(card.split('---')[1])
    assert {'dpo', 'dpo_nb'} <= set(head['tags']) and 'me/mine' in str(Hub.seen)


# --- configurations for several processes

@pytest.mark.parametrize('name, kind', [('ddp', 'MULTI_GPU'), ('fsdp2', 'FSDP'), ('zero2', 'DEEPSPEED'), ('zero3', 'DEEPSPEED')])
def test_accelerate_reads_our_configurations(name, kind):
    c = load_config_from_file(str(ROOT/'configs'/f'{name}.yaml'))
    assert str(getattr(c.distributed_type, 'value', c.distributed_type)) == kind and c.mixed_precision == 'bf16' and c.num_processes == 8


# --- a mixture, from the command line

def test_a_mixture_in_a_yaml_file(tmp_path):
    from dpo_nb.run.cli import parse
    from dpo_nb.toy import toy_path
    from dpo_nb.run.job import build_job
    pairs.select(range(6)).to_json(tmp_path/'a.jsonl'); pairs.select(range(6, 16)).to_parquet(str(tmp_path/'b.parquet'))
    config = dict(model_name_or_path=toy_path(), output_dir=str(tmp_path/'out'), max_steps=2, bf16=False, overlong='drop', precompute_ref_log_probs=True, report_to='none',
                  datasets=[dict(path=str(tmp_path/'a.jsonl'), weight=2), dict(path=str(tmp_path/'b.parquet'), split='train', weight=.5)])
    (tmp_path/'c.yaml').write_text(yaml.safe_dump(config))
    job = build_job(*parse(['--config', str(tmp_path/'c.yaml'), '--beta', '0.2']))
    assert len(job.train) == 2*6 + 5 and job.trainer.args.beta == .2 and job.held is None
    assert job.train['chosen'][:6] == job.train['chosen'][6:12] == pairs['chosen'][:6]
    assert 'ref_hash' in job.trainer.train_dataset.column_names
    as_flag = parse(['--model_name_or_path', toy_path(), '--datasets', json.dumps(config['datasets']), '--bf16', 'false'])
    assert len(build_job(*as_flag).train) == 17
    del config['precompute_ref_log_probs']
    (tmp_path/'s.yaml').write_text(yaml.safe_dump(config | dict(streaming=True, overlong='truncate', datasets=[dict(path=str(tmp_path/'a.jsonl'))])))  # TRL's word for it
    streamed = build_job(*parse(['--config', str(tmp_path/'s.yaml')])).train
    assert isinstance(streamed, IterableDataset) and [r['chosen'] for r in streamed] == pairs['chosen'][:6]


@pytest.mark.parametrize('shares', [(.5, .5), (3, 1), (.2, .8), (0, 1)])
def test_a_mixture_holds_the_rows_that_trl_takes(shares, tmp_path):
    trl = live_trl('trl')
    from trl.scripts.utils import DatasetConfig
    from dpo_nb.run.job import load_mixture
    flat = pairs.map(lambda r: {k: r[k][0]['content'] for k in ('prompt', 'chosen', 'rejected')}).select_columns(['prompt', 'chosen', 'rejected'])
    flat.select(range(7)).add_column('more', [1]*7).to_json(tmp_path/'a.jsonl'); flat.select(range(7, 20)).to_json(tmp_path/'b.jsonl')
    entries = [dict(path='json', data_files=str(tmp_path/f), split='train', columns=['prompt', 'chosen', 'rejected'], fraction=s) for f, s in zip(('a.jsonl', 'b.jsonl'), shares)]
    theirs = trl.get_dataset(trl.DatasetMixtureConfig(datasets=[DatasetConfig(**e) for e in entries]))['train']
    assert load_mixture(entries).to_list() == theirs.to_list() and len(theirs) >= 8


def test_some_of_a_mixture_is_held_out_and_a_column_of_weights_comes_along(tmp_path):
    from dpo_nb.run.cli import parse
    from dpo_nb.toy import toy_path
    from dpo_nb.run.job import build_job
    pairs.select(range(20)).add_column('w', [float(i) for i in range(1, 21)]).to_json(tmp_path/'a.jsonl')
    line = ['--model_name_or_path', toy_path(), '--datasets', json.dumps([dict(path=str(tmp_path/'a.jsonl'))]), '--output_dir', str(tmp_path/'out'), '--bf16', 'false',
            '--test_split_size', '0.2', '--eval_strategy', 'steps', '--weight_column', 'w', '--report_to', 'none']
    job = build_job(*parse(line))
    assert len(job.train) == 16 and len(job.held) == 4 and sorted([*job.train['w'], *job.held['w']]) == [float(i) for i in range(1, 21)]
    assert sum(job.trainer.train_dataset['pair_weight']) == sum(job.train['w'])
    with pytest.raises(ValueError, match='test_split_size=30'): build_job(*parse([*line, '--test_split_size', '30']))


@pytest.mark.skipif(importlib.util.find_spec('bitsandbytes') is None, reason='bitsandbytes is not installed')
def test_a_model_in_4_bits_learns_after_it_has_answered(tmp_path):
    "On a CPU with bf16 units bitsandbytes packs weights when a model answers, and gradients through those are wrong."
    from transformers import BitsAndBytesConfig
    from dpo_nb.toy import toy_path
    torch.manual_seed(0)
    args = DPOConfig(str(tmp_path), max_steps=8, learning_rate=1e-2, per_device_train_batch_size=8, use_cpu=True, bf16=False, report_to='none', logging_steps=1, save_strategy='no', disable_tqdm=True)
    t = DPOTrainer(toy_path(), args=args, train_dataset=pairs.select(range(8)), processing_class=load_toy_tokenizer(), quantization_config=BitsAndBytesConfig(load_in_4bit=True),
                   peft_config=LoraConfig(r=8, target_modules=['q_proj', 'v_proj']))
    t.model.eval().generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2)
    t.train()
    margins = [h['rewards/margins'] for h in t.state.log_history if 'rewards/margins' in h]
    assert margins[0] == 0 and margins[-1] > .5
