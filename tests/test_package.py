"The package as its users meet it: quick to import, one version everywhere, and a wheel that trains without any of our tools."
import json, os, re, subprocess, sys, time, zipfile

import pytest
from conftest import copy_checkout, run
from project import ROOT, settings

TRAINED = {'model.safetensors', 'config.json', 'tokenizer.json', 'tokenizer_config.json', 'trainer_state.json', 'report.html'}


def quickest(code, times=5):
    "The smallest of a few runs of `code` in fresh interpreters: what the work takes when nothing else runs."
    return min(float(run(sys.executable, '-c', code).stdout.split()[-1]) for _ in range(times))


def test_import_is_quick_and_lazy():
    assert quickest('import time; t = time.perf_counter(); import dpo_nb; print(time.perf_counter() - t)') < 0.1
    heavy = run(sys.executable, '-c', 'import dpo_nb, sys; print({"torch", "transformers", "datasets", "numpy"} & set(sys.modules))').stdout
    assert heavy.strip() == 'set()'


def test_public_names_resolve_and_others_are_refused():
    code = 'import dpo_nb; [getattr(dpo_nb, n) for n in dpo_nb.__all__]; print(dpo_nb.__version__); dpo_nb.nothing'
    done = run(sys.executable, '-c', code, check=False)
    assert done.stdout.strip() == settings()['version'], done.stderr
    assert "AttributeError: module 'dpo_nb' has no attribute 'nothing'" in done.stderr


def test_help_is_quick():
    took = []
    for _ in range(5):
        start = time.perf_counter()
        said = run('dpo_nb', '--help').stdout
        took.append(time.perf_counter() - start)
    assert 'train' in said and min(took) < 1, took


def test_environment_is_consistent():
    assert run(sys.executable, '-m', 'pip', 'check').stdout.strip() == 'No broken requirements found.'


def test_constraints_hold_what_is_required():
    "Each requirement has an exact version, and it is one the range in settings.ini allows."
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    lines = [l for l in (ROOT/'constraints.txt').read_text(encoding='utf-8').splitlines() if l and not l.startswith('#')]
    pins = [Requirement(l) for l in lines]
    exact = {canonicalize_name(p.name): str(p.specifier).removeprefix('==') for p in pins if not p.marker or p.marker.evaluate()}
    assert exact['torch'] == '2.13.0'
    for line in f"{settings()['requirements']} {settings()['dev_requirements']}".split():
        need = Requirement(line)
        if need.marker and not need.marker.evaluate(): continue
        assert need.specifier.contains(exact[canonicalize_name(need.name)]), f'{line} does not allow {exact[canonicalize_name(need.name)]}'


def test_one_version_everywhere():
    version = settings()['version']
    found = {name: re.search(pattern, (ROOT/name).read_text(encoding='utf-8'), re.M)[1] for name, pattern in {
        'dpo_nb/__init__.py': r'^__version__ = "(.*)"', 'CITATION.cff': r'^version: (.*)$', 'CHANGELOG.md': r'^## ([^ ]+)'}.items()}
    assert set(found.values()) == {version}, found


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built from a copy of the checkout."
    folder = tmp_path_factory.mktemp('wheel')
    copy_checkout(folder/'checkout')
    run(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '-w', folder, folder/'checkout', cwd=folder)
    return next(folder.glob('*.whl'))


def test_wheel_holds_the_package_and_its_assets_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {n.partition('/')[0] for n in names}
    assert tops == {'dpo_nb', f"dpo_nb-{settings()['version']}.dist-info"}, 'more than the package is in the wheel'
    def files(folder, suffix): return {p.relative_to(ROOT).as_posix() for p in (ROOT/folder).rglob(f'*{suffix}') if p.is_file() and '__pycache__' not in p.parts}
    missing = (files('dpo_nb', '.py') | files('dpo_nb/assets', '')) - set(names)
    assert not missing
    assert any(n.endswith('licenses/LICENSE') for n in names)
    assert sum(p.stat().st_size for p in (ROOT/'dpo_nb'/'assets').rglob('*') if p.is_file()) <= 5_000_000


@pytest.fixture(scope='module')
def user(wheel, tmp_path_factory):
    "A fresh environment with the wheel and nothing of ours: the folder of its programs."
    env = tmp_path_factory.mktemp('user')/'env'
    run(sys.executable, '-m', 'venv', env, cwd=env.parent)
    pip = [env/'bin'/'python', '-m', 'pip', 'install', '--quiet', '-c', ROOT/'constraints.txt', wheel]
    done = run(*pip, cwd=env.parent, check=False)
    if done.returncode and not os.environ.get('CI') and re.search('Connection|Temporary failure|No matching distribution', done.stderr):
        pytest.skip('no package index to install the requirements from')
    assert done.returncode == 0, done.stderr[-3000:]
    return env/'bin'


def test_wheel_trains_without_development_tools(user, tmp_path):
    "Another folder, another environment: `dpo_nb train` runs the embedded default, and what it saves loads."
    tools = [d for d in ('nbdev', 'fastcore', 'execnb', 'pytest', 'trl') if subprocess.run([user/'python', '-c', f'import {d}'], capture_output=True, cwd=tmp_path).returncode == 0]
    assert not tools, f'{tools} are installed: this would prove nothing'
    run(user/'dpo_nb', 'train', '--max_steps', '4', '--output_dir', 'trained', cwd=tmp_path, PYTHONPATH='')
    assert TRAINED <= {p.name for p in (tmp_path/'trained').iterdir()}
    state = json.loads((tmp_path/'trained'/'trainer_state.json').read_text())
    assert state['global_step'] == 4
    code = '''
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
import dpo_nb
model, tok = AutoModelForCausalLM.from_pretrained("trained"), AutoTokenizer.from_pretrained("trained")
ids = tok(tok.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False), return_tensors="pt")
with torch.no_grad(): assert model(**ids).logits.isfinite().all()
assert "site-packages" in dpo_nb.__file__, dpo_nb.__file__
assert any((a != b).any() for a, b in zip(model.parameters(), dpo_nb.load_toy_model().parameters())), "nothing was learned"
print("loads")
'''
    assert run(user/'python', '-c', code, cwd=tmp_path, PYTHONPATH='').stdout.split()[-1] == 'loads'
    before = sorted(tmp_path.rglob('*'))
    again = run(user/'dpo_nb', 'train', '--max_steps', '4', '--output_dir', 'trained', cwd=tmp_path, check=False, PYTHONPATH='')
    assert again.returncode == 2 and 'Traceback' not in again.stderr and sorted(tmp_path.rglob('*')) == before, again.stderr
