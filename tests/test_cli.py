"The command line as somebody at a terminal meets it: what it says, what it writes, what it refuses, and that the embedded example learns."
import json, os, re, shutil, signal, subprocess, sys, time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import MISSING, fields
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import live_trl, run
from project import ROOT

BIN = Path(sys.executable).parent
SAVED = {'model.safetensors', 'config.json', 'tokenizer.json', 'tokenizer_config.json', 'trainer_state.json', 'report.html'}


def dpo(*argv):
    "The program in this process: exit code, stdout, stderr."
    from dpo_nb.run.cli import main
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err): code = main([str(a) for a in argv])
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def tree(folder='.'): return {p: p.read_bytes() if p.is_file() else None for p in sorted(Path(folder).rglob('*'))}


def refused(done, *says):
    lines = done.err.splitlines()
    assert done.code == 2 and len(lines) == 1 and lines[0].startswith('dpo_nb train: error: '), done.err
    assert done.out == '' and all(s in lines[0] for s in says), done.err
    return lines[0]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "A folder with the tiny reviewer as a model on disk, and a few pairs in every wrapping."
    import datasets
    from dpo_nb.toy import load_toy_pairs, toy_path
    here = tmp_path_factory.mktemp('data')
    shutil.copytree(toy_path(), here/'reviewer')
    few = datasets.DatasetDict({k: v.select(range(24)) for k, v in load_toy_pairs().items()}).select_columns(['prompt', 'chosen', 'rejected'])
    flat = few['train'].map(lambda r: {k: r[k][0]['content'] for k in r})
    few['train'].to_json(here/'pairs.jsonl'), few['train'].to_parquet(here/'pairs.parquet'), flat.to_csv(here/'pairs.csv'), flat.to_json(here/'plain.jsonl')
    (here/'pairs.json').write_text(json.dumps(few['train'].to_list()))
    few.save_to_disk(here/'both'), few['train'].save_to_disk(here/'one')
    (here/'files').mkdir(), few['train'].to_json(here/'files'/'train.jsonl'), few['test'].to_json(here/'files'/'test.jsonl')
    return here


@pytest.fixture
def at(data, tmp_path, monkeypatch):
    "An empty working folder in which that data is reachable by short names."
    for p in data.iterdir(): (tmp_path/p.name).symlink_to(p)
    monkeypatch.chdir(tmp_path)
    return tmp_path


REAL = ['train', '--model_name_or_path', 'reviewer', '--bf16', 'false', '--no_gradient_checkpointing', '--learning_rate', '1e-3', '--per_device_train_batch_size', '4',
        '--num_samples', '0', '--output_dir', 'out', '--max_steps', '2']


def real(*argv, data='pairs.jsonl'): return dpo(*REAL, '--dataset_name', data, *argv)


def test_help_and_version_are_quick():
    for flag, says in (('--help', 'train   Train a model'), ('--version', 'dpo_nb ')):
        took = []
        for _ in range(3):
            start = time.perf_counter()
            said = run('dpo_nb', flag).stdout
            took.append(time.perf_counter() - start)
        assert says in said and min(took) < 1, took
    assert dpo().out == dpo('--help').out == dpo('help').out


def test_train_help_has_every_setting():
    from dpo_nb.train.config import DPOConfig
    short, everything = dpo('train', '--help'), dpo('train', '--help_all')
    assert (short.code, everything.code, short.err, everything.err) == (0, 0, '', '')
    assert all(re.search(rf'^  --{f.name}  ', everything.out, re.M) for f in fields(DPOConfig))
    assert max(map(len, everything.out.splitlines())) <= 110 and len(short.out.splitlines()) < 100


@pytest.mark.parametrize('argv, says', {
    '--lr 1': 'unknown flag --lr; did you mean --learning_rate?',
    '--lerning-rate 1': 'unknown flag --lerning-rate; did you mean --learning_rate?',
    '--max_len 9': 'unknown flag --max_len; did you mean --max_length?',
    'pairs.jsonl': "unexpected 'pairs.jsonl'",
    '--beta high': "argument --beta: invalid float value: 'high'",
    '--beta': 'argument --beta: expected one argument',
    '--beta 0': 'beta=0.0 must be > 0',
    '--truncation_mode middle': "invalid choice: 'middle'",
    '--loss_type dpo': "loss_type='dpo' is unknown",
    '--fp16 --bf16': 'At most one of fp16 and bf16',
    '--model_init_kwargs {x': 'model_init_kwargs',
    '--dataset_name pairs.jsonl': 'model_name_or_path is missing',
    '--model_name_or_path reviewer': 'dataset_name is missing',
    '--resume_from_checkpoint': 'there is no checkpoint in dpo_out',
    '--resume_from_checkpoint reviewer': 'is no checkpoint',
    '--output_dir pairs.jsonl': 'is a file',
    '--config nowhere.yaml': "config='nowhere.yaml': there is no such file",
}.items())
def test_refused_before_anything_is_loaded(at, argv, says):
    before = tree()
    refused(dpo('train', *argv.split()), says)
    assert tree() == before


@pytest.mark.parametrize('argv, says', {
    '--dataset_name typo.jsonl': 'there is no such file or folder',
    '--dataset_name ./typo': 'there is no such file or folder',
    '--dataset_name some/where': "dataset_name='some/where' is no file or folder here, and the hub did not deliver it",
    '--dataset_name note.txt': 'legal are .json, .jsonl, .parquet, .csv',
    '--dataset_name broken.jsonl': 'could not be read: JSON parse error',
    '--dataset_name empty.jsonl': 'it holds no rows',
    '--dataset_name pairs.jsonl --dataset_train_split half': "dataset_train_split='half' is no split of 'pairs.jsonl', which has ['train']",
    '--dataset_name pairs.jsonl --eval_strategy steps': "dataset_test_split='test' is no split of 'pairs.jsonl', which has ['train']",
    '--dataset_name nochosen.jsonl': "no column 'chosen'",
    '--dataset_name question.jsonl': "'question'",
    '--dataset_name mixed.jsonl': "column 'prompt' is a string but 'chosen' is a list of messages",
    '--dataset_name none.jsonl': 'row 1 of the train dataset',
    '--dataset_name pairs.jsonl --max_length 3': 'raise max_length',
    '--dataset_name both --dataset_streaming --max_steps -1': 'dataset_streaming needs max_steps',
    '--dataset_name pairs.jsonl --model_name_or_path ./typo': "model_name_or_path='./typo': there is no such folder",
    '--dataset_name pairs.jsonl --model_name_or_path pairs.jsonl': 'there is no such folder',
    '--dataset_name pairs.jsonl --model_name_or_path files': 'holds no model',
    '--dataset_name pairs.jsonl --model_name_or_path some/where': "model_name_or_path='some/where' is no folder here, and the hub did not deliver it",
    '--dataset_name pairs.jsonl --load_in_4bit': 'add use_peft',
    '--dataset_name pairs.jsonl --load_in_4bit --load_in_8bit --use_peft': 'choose one',
    '--dataset_name pairs.jsonl --use_peft --lora_target_modules nothing': "Target modules {'nothing'} not found",
    '--dataset_name pairs.jsonl --attn_implementation nothing': 'attn_implementation="nothing"',
    '--dataset_name pairs.jsonl --pad_token <nothing>': "pad_token='<nothing>' is not in the tokenizer's vocabulary",
    '--dataset_name pairs.jsonl --report_to nothing': 'nothing is not supported',
}.items())
def test_refused_with_names(at, argv, says):
    rows = {'nochosen': [dict(prompt='a', rejected='b')], 'question': [dict(question='What is the capital of France?', chosen='It is Paris.', rejected='It is Lyon.')],
            'mixed': [dict(prompt='a', chosen=[dict(role='assistant', content='b')], rejected=[dict(role='assistant', content='c')])],
            'none': [dict(prompt='a', chosen='b', rejected='c'), dict(prompt='a', chosen=None, rejected='c')]}
    for name, rs in rows.items(): Path(f'{name}.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rs))
    Path('note.txt').write_text('x'), Path('broken.jsonl').write_text('{"a": 1\nx'), Path('empty.jsonl').touch()
    before = tree()
    refused(dpo(*REAL, *argv.split()), says)
    assert {k: v for k, v in tree().items() if k.name != 'out'} == before and (not Path('out').exists() or not os.listdir('out'))


def test_missing_bitsandbytes_is_named(at, monkeypatch):
    import importlib.util
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name == 'bitsandbytes' else found(name, *a))
    refused(real('--load_in_8bit', '--use_peft'), 'load_in_8bit needs the package bitsandbytes', 'pip install bitsandbytes')


def test_refused_in_a_process_of_its_own(at):
    "The same through the console script, where nothing is caught by pytest: one line on stderr and nothing on stdout."
    before = tree()
    for argv, says in (('--lr 1', '--learning_rate'), ('--model_name_or_path reviewer --dataset_name typo.jsonl', 'no such file')):
        done = run('dpo_nb', 'train', *argv.split(), cwd=at, check=False, PYTHONPATH='')
        refused(SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr), says)
    done = run('dpo_nb', 'trian', cwd=at, check=False, PYTHONPATH='')
    assert (done.returncode, done.stderr.splitlines()) == (2, ["dpo_nb: error: there is no command 'trian'; did you mean train? (dpo_nb --help lists them)"])
    assert tree() == before


def test_traceback_on_request(at):
    done = dpo('train', '--beta', '0', '--traceback')
    assert done.code == 2 and done.err.startswith('Traceback') and done.err.splitlines()[-1].startswith('dpo_nb train: error: beta=0.0')


def test_settings_file(at):
    from dpo_nb.run.cli import parse
    Path('run.yaml').write_text('learning_rate: 1e-4\nmax_length: null\nbf16: false\nuse_peft: true\nlora_target_modules: [q_proj, v_proj]\nmodel_init_kwargs: {use_cache: false}\n'
                                'report_to: [none]\nmodel_name_or_path: reviewer\ndataset_name: pairs.jsonl\n')
    s, m, a = parse(['--config', 'run.yaml', '--beta', '.3'])
    assert (s.dataset_name, m.model_name_or_path, m.use_peft, m.lora_target_modules) == ('pairs.jsonl', 'reviewer', True, ['q_proj', 'v_proj'])
    assert (a.learning_rate, a.max_length, a.bf16, a.beta, a.model_init_kwargs, a.report_to, a.num_train_epochs) == (1e-4, None, False, .3, dict(use_cache=False), [], 3.)
    s, m, a = parse(['--config=run.yaml', '--learning_rate=1e-5', '--max_length', '64', '--use_peft', 'false', '--lora_target_modules', 'o_proj'])
    assert (a.learning_rate, a.max_length, m.use_peft, m.lora_target_modules) == (1e-5, 64, False, ['o_proj'])
    for text, says in {'lerning_rate: 1': "sets 'lerning_rate', which is no setting; did you mean learning_rate?", 'beta:': "leaves 'beta' empty", '- beta': 'name: value',
                       'beta: [1': 'is not YAML', 'beta: high': "invalid float value: 'high'", 'config: run.yaml': "sets 'config'"}.items():
        Path('bad.yaml').write_text(text)
        refused(dpo('train', '--config', 'bad.yaml'), says)


def test_embedded_settings_are_defaults_only(at):
    from dpo_nb.run.cli import parse
    from dpo_nb.run.job import embedded
    Path('run.yaml').write_text('bf16: false\nper_device_train_batch_size: 2\n')
    a = parse(['--config', 'run.yaml', '--learning_rate', '7e-4'])[2]
    assert (a.learning_rate, a.per_device_train_batch_size, a.warmup_steps) == (7e-4, 2, embedded['warmup_steps'])
    a = parse(['--model_name_or_path', 'm', '--dataset_name', 'd', '--bf16', 'false'])[2]
    assert (a.learning_rate, a.per_device_train_batch_size, a.eval_strategy) == (1e-6, 8, 'no')


def test_names_and_defaults_are_trls():
    trl = live_trl('trl')
    from dpo_nb.train.config import DPOConfig
    from dpo_nb.run.job import ModelArguments, ScriptArguments
    default = lambda f: f.default_factory() if f.default_factory is not MISSING else f.default
    for ours, theirs, ours_only, theirs_only in (
            (ScriptArguments, (trl.DatasetMixtureConfig, trl.ScriptArguments), {'num_samples', 'overwrite_output_dir', 'config', 'traceback'}, {'ignore_bias_buffers', 'streaming'}),
            (ModelArguments, (trl.ModelConfig,), set(), set()), (DPOConfig, (trl.DPOConfig,), None, None)):
        a, b = ({f.name: default(f) for c in cs for f in fields(c)} for cs in ((ours,), theirs))
        if ours is ScriptArguments: a['datasets'] = a['datasets'] or []  # no mixture
        if ours_only is not None: assert (set(a)-set(b), set(b)-set(a)) == (ours_only, theirs_only)
        differ = {k: (a[k], b[k]) for k in a.keys() & b.keys() if a[k] != b[k] and (k, a[k], b[k]) != ('pad_to_multiple_of', None, 'auto')}  # the same but on Neuron devices
        assert not differ, differ


def test_flags_are_trls():
    "What `trl dpo` accepts as a flag is a flag here, with the same arity; bare switches may be more."
    trl = live_trl('trl')
    from dpo_nb.run.cli import make_parser
    ours, theirs = ({o: a for a in p._actions for o in a.option_strings} for p in (make_parser(), trl.TrlParser((trl.ScriptArguments, trl.DPOConfig, trl.ModelConfig, trl.DatasetMixtureConfig))))
    missing = {o for o in theirs if o not in ours} - {'-h', '--help', '--ignore_bias_buffers', '--ignore-bias-buffers'}
    assert not missing, missing
    assert {o for o, a in theirs.items() if o in ours and a.nargs not in (ours[o].nargs, None)} <= {'--datasets'}  # a list of dataclasses, which no line can hold: both read it from a file


@pytest.mark.parametrize('name, more', {'pairs.jsonl': '', 'pairs.json': '', 'pairs.parquet': '', 'pairs.csv': '', 'files': '--eval_strategy steps', 'both': '--eval_strategy epoch', 'one': '',
                                        'pairs.jsonl ': '--dataset_streaming', 'both ': '--dataset_streaming --eval_strategy steps'}.items())
def test_each_kind_of_dataset(at, name, more):
    done = real(*more.split(), data=name.strip())
    assert done.code == 0, done.err
    assert SAVED <= set(os.listdir('out'))
    assert ('to evaluate on' in done.out) == ('eval' in more) == ('held-out reward accuracy' in done.out)
    assert ('plain text, explicit prompt' if 'csv' in name else 'conversational, explicit prompt') in done.out
    state = json.loads(Path('out/trainer_state.json').read_text())
    assert state['global_step'] == 2 and state['log_history'][-1]['train_runtime' if 'eval' not in more else 'step'] > 0


def test_what_a_real_run_says_and_leaves(at):
    done = real('--num_samples', '2', '--max_length', '30', '--logging_steps', '1', '--max_steps', '3')
    assert done.code == 0 and done.err.startswith('note      train: max_length=30') and len(done.err.splitlines()) == 1, done.err
    for says in ('model     reviewer: 0.9 M parameters, all trained, float32, on cpu', '24 pairs to train on', 'tokens        min  median   90 %    max', '  step  epoch     loss', '3 steps; training took',
                 '  before  ', '  after   ', 'Saved to out: the model', 'out/report.html'): assert says in done.out, done.out
    rows = [l.split() for l in done.out.splitlines() if re.match(r' +\d+ +\d+\.\d\d +\d', l)]
    assert [r[0] for r in rows] == ['1', '2', '3'] and rows[0][2:] == ['0.6931', '+0.000', '0.000', '+0.000', '+0.000'], rows
    assert "{'loss'" not in done.out and len(done.out.splitlines()) < 60
    report = Path('out/report.html').read_text()
    assert 'reviewer' in report and 'Samples' in report and len(re.findall(r'class="pair"', report)) == 6


def printed_line(out): return re.search(r'^Try it:\n  (.*)$', out, re.M)[1]


def test_the_printed_line_works(at, tmp_path_factory):
    "Copied from the end of a run to a shell; and the saved folder loads from elsewhere."
    from transformers import AutoModelForCausalLM, AutoTokenizer
    assert "print(ask('…'," in printed_line(real('--output_dir', 'plain', data='plain.jsonl').out)
    line = printed_line(real('--learning_rate', '1e-6').out)
    assert "[{'role': 'user', 'content': '…'}]" in line
    path = os.pathsep.join([str(BIN), os.environ['PATH']])
    said = subprocess.run(line.replace('…', 'Review the lemon cake in a few sentences.'), shell=True, cwd=at, capture_output=True, text=True, env={**os.environ, 'PATH': path})
    assert said.returncode == 0 and said.stdout.strip(), said.stderr
    moved = Path(shutil.copytree('out', tmp_path_factory.mktemp('moved')/'model'))
    model, tok = AutoModelForCausalLM.from_pretrained(moved), AutoTokenizer.from_pretrained(moved)
    assert model(**tok('Review', return_tensors='pt')).logits.isfinite().all()


def test_lora_run_reload_and_go_on(at, tmp_path_factory):
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM
    lora = ['--use_peft', '--lora_target_modules', 'q_proj', 'v_proj', '--lora_r', '4', '--learning_rate', '1e-2', '--eval_strategy', 'steps', '--eval_on_start']
    done = real(*lora, data='both')
    assert done.code == 0 and 'Saved to out: the adapter' in done.out, done.err
    assert 'adapter_model.safetensors' in os.listdir('out') and 'model.safetensors' not in os.listdir('out')
    assert json.loads(Path('out/adapter_config.json').read_text())['r'] == 4
    log = json.loads(Path('out/trainer_state.json').read_text())['log_history']
    start, end = (next(l['eval_loss'] for l in ls if 'eval_loss' in l) for ls in (log, log[::-1]))
    assert abs(start-0.693147) < 1e-5 and abs(end-start) > 1e-4
    base, tuned = (AutoModelForCausalLM.from_pretrained(f) for f in ('reviewer', 'out'))      # peft opens the base model below the adapter
    ids = torch.arange(5, 25)[None]
    assert not torch.equal(base(ids).logits, tuned(ids).logits)
    assert torch.equal(AutoPeftModelForCausalLM.from_pretrained('out')(ids).logits, tuned(ids).logits)
    again = real(*lora[6:], '--model_name_or_path', 'out', '--output_dir', 'more', data='both')
    assert again.code == 0 and 'the adapter' in again.out, again.err
    log = json.loads(Path('more/trainer_state.json').read_text())['log_history']
    assert abs(log[0]['eval_loss']-0.693147) < 1e-5, 'the reference is not the adapter as it was'
    refused(real(*lora, '--model_name_or_path', 'out', '--output_dir', 'third', data='both'), 'already has an adapter')


def weights(folder):
    from safetensors.torch import load_file
    return load_file(f'{folder}/model.safetensors')


def test_resume_gives_what_one_run_gives(at):
    import torch
    whole = real('--max_steps', '4', '--save_steps', '2', '--output_dir', 'whole')
    assert whole.code == 0, whole.err
    Path('half').mkdir(), shutil.copytree('whole/checkpoint-2', 'half/checkpoint-2')
    said = refused(real('--max_steps', '4', '--save_steps', '2', '--output_dir', 'half'), 'an unfinished run', '--resume_from_checkpoint', '--overwrite_output_dir', '--output_dir NAME')
    assert '--resume_from_checkpoint' not in refused(real('--output_dir', 'whole'), 'a finished run', '--overwrite_output_dir'), said
    done = real('--max_steps', '4', '--save_steps', '2', '--output_dir', 'half', '--resume_from_checkpoint')
    assert done.code == 0 and 'lm_head' not in done.err, done.err
    a, b = weights('whole'), weights('half')
    assert all(torch.equal(a[k], b[k]) for k in a)
    refused(real('--max_steps', '4', '--output_dir', 'half', '--resume_from_checkpoint'), 'is at step 4 of 4, so there is nothing left to train')
    again = real('--max_steps', '6', '--output_dir', 'other', '--resume_from_checkpoint', 'half/checkpoint-4')
    assert again.code == 0 and json.loads(Path('other/trainer_state.json').read_text())['global_step'] == 6, again.err


def test_nothing_is_overwritten_unasked(at):
    Path('out').mkdir(), Path('out/thesis.tex').write_text('x'), Path('out/checkpoint-9').mkdir(), Path('out/model.safetensors').write_text('old')
    before = tree('out')
    refused(real(), 'already holds an unfinished run')
    refused(real('--overwrite_output_dir', data='typo.jsonl'), 'no such file')
    refused(real('--overwrite_output_dir', '--use_peft', '--lora_target_modules', 'nothing'), 'Target modules')
    shutil.copytree('reviewer', 'out/reviewer')
    refused(real('--overwrite_output_dir', '--model_name_or_path', 'out/reviewer'), 'model_name_or_path lies in')
    shutil.rmtree('out/reviewer')
    assert tree('out') == before
    assert real('--overwrite_output_dir').code == 0
    assert Path('out/thesis.tex').read_text() == 'x' and not Path('out/checkpoint-9').exists() and SAVED <= set(os.listdir('out'))
    assert real('--overwrite_output_dir', '--use_peft', '--lora_target_modules', 'q_proj').code == 0     # an adapter over a full model: nothing of the model is left to be loaded by mistake
    assert not {'model.safetensors', 'config.json'} & set(os.listdir('out')) and Path('out/thesis.tex').exists()


def test_failure_on_the_way_says_what_is_left(at, monkeypatch):
    from dpo_nb.train.trainer import DPOTrainer
    loss = DPOTrainer.compute_loss
    def fails(self, *args, **kwargs):
        if self.state.global_step == 3: raise ValueError('the disk is on fire')
        return loss(self, *args, **kwargs)
    monkeypatch.setattr(DPOTrainer, 'compute_loss', fails)
    done = real('--max_steps', '5', '--save_steps', '2')
    assert done.code == 1 and 'Traceback' in done.err and 'the disk is on fire' in done.err
    assert done.err.splitlines()[-1] == 'dpo_nb train: error: stopped at step 3; the last checkpoint is out/checkpoint-2, and --resume_from_checkpoint goes on from it'


def test_interrupt(at):
    "Ctrl-C in the middle of training: one line, no traceback, exit code 130."
    argv = [BIN/'dpo_nb', *REAL, '--dataset_name', 'pairs.jsonl', '--max_steps', '100000', '--logging_steps', '1', '--save_steps', '1', '--save_total_limit', '2']
    p = subprocess.Popen(argv, cwd=at, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONUNBUFFERED': '1'})
    seen = []
    for line in p.stdout:
        seen.append(line)
        if re.match(r' +3 ', line): break
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=120)
    assert p.returncode == 130, (''.join(seen), err)
    assert re.fullmatch(r'(note .*\n)?dpo_nb train: interrupted at step \d+; the last checkpoint is out/checkpoint-\d+, and --resume_from_checkpoint goes on from it', err.strip()), err


def test_an_interrupt_that_a_library_swallows_stops_the_next_step(at, monkeypatch):
    "A Ctrl-C was lost once, without a trace, and the run went on. Here one is lost while a checkpoint is written."
    from dpo_nb.train.trainer import DPOTrainer
    save = DPOTrainer._save_checkpoint
    def swallows(self, *args, **kwargs):
        try: os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt: pass
        return save(self, *args, **kwargs)
    monkeypatch.setattr(DPOTrainer, '_save_checkpoint', swallows)
    before = signal.getsignal(signal.SIGINT)
    done = real('--max_steps', '9', '--save_steps', '2')
    assert done.code == 130 and 'interrupted at step 2; the last checkpoint is out/checkpoint-2' in done.err and signal.getsignal(signal.SIGINT) is before


def test_what_stops_names_a_checkpoint_that_is_whole(tmp_path):
    from dpo_nb.run.cli import _where_to_go_on
    from dpo_nb.toy import load_toy_model
    for step in (2, 4): load_toy_model().save_pretrained(tmp_path/f'checkpoint-{step}')
    (tmp_path/'checkpoint-2'/'trainer_state.json').write_text('{}')  # it is written last, so that of step 4 was not finished
    job = SimpleNamespace(trainer=SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path)), state=SimpleNamespace(global_step=4)))
    assert _where_to_go_on(job) == f' at step 4; the last checkpoint is {tmp_path}/checkpoint-2, and --resume_from_checkpoint goes on from it'


def test_the_embedded_example_learns(tmp_path):
    "The main job, whole, as a newcomer types it."
    from transformers import AutoModelForCausalLM, AutoTokenizer
    done = run('dpo_nb', 'train', cwd=tmp_path, check=False, PYTHONPATH='')
    assert done.returncode == 0 and done.stderr == '', done.stderr
    out = tmp_path/'dpo_out'
    assert SAVED <= set(os.listdir(out))
    value = lambda label: re.search(rf'^{label}.*?  +(?:([-+.\d]+)%?  +)?([-+.\d]+)%?(?: ± ([.\d]+))?$', done.stdout, re.M).groups()
    (_, accuracy, _), (before, after, _), (start, kl, error) = value('held-out reward accuracy'), value('positive reviews, of 216 sampled'), value('KL from the reference')
    assert float(accuracy) >= 90 and 40 <= float(before) <= 60 and float(after) >= 85, done.stdout
    assert float(start) == 0 and 0 < float(kl) < 30 and 0 < float(error) < float(kl)/3, done.stdout
    state = json.loads((out/'trainer_state.json').read_text())
    seconds = next(l['train_runtime'] for l in state['log_history'] if 'train_runtime' in l)
    assert seconds > 0 and f'training took {seconds:.0f} s' in done.stdout
    first = next(l for l in state['log_history'] if 'loss' in l)
    assert first['step'] == 1 and abs(first['loss']-0.693147) < 1e-5 and first['rewards/margins'] == 0
    assert next(l for l in reversed(state['log_history']) if 'eval_loss' in l)['eval_rewards/accuracies'] >= .9
    report = (out/'report.html').read_text()
    assert 'tiny reviews' in report and not re.search(r'(src|href)\s*=\s*["\']?\s*https?:', report)
    model, tok = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = tok.apply_chat_template([dict(role='user', content='Review the lemon cake in a few sentences.')], add_generation_prompt=True, return_tensors='pt', return_dict=True)
    assert len(tok.decode(model.generate(**ids, max_new_tokens=40)[0, ids['input_ids'].shape[1]:], skip_special_tokens=True)) > 20
    again = run('dpo_nb', 'train', cwd=tmp_path, check=False, PYTHONPATH='')
    refused(SimpleNamespace(code=again.returncode, out=again.stdout, err=again.stderr), "output_dir='dpo_out' already holds a finished run", '--overwrite_output_dir')
