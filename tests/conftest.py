"What several test files share: a copy of the checkout to change without harm."
import importlib, logging, os, subprocess, sys
from pathlib import Path

import pytest

from project import ROOT, copy_checkout

os.environ.setdefault('HF_HUB_OFFLINE', '1')


def run(*args, cwd=ROOT, check=True, **env):
    "Run a command of this environment; with `cwd` elsewhere the package is imported from there."
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])
    env = {**os.environ, 'PATH': path, 'PYTHONPATH': '' if cwd == ROOT else str(cwd), **env}
    done = subprocess.run([str(a) for a in args], cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, f'{args} exited with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}'
    return done


def live_trl(module='trl'):
    "TRL 1.16.0, to compare with. It needs Python 3.11; from there on a missing one is an error, so that no comparison is skipped unseen."
    if sys.version_info < (3, 11): pytest.skip('TRL 1.16.0 needs Python 3.11', allow_module_level=True)
    return importlib.import_module(module)


@pytest.fixture
def checkout(tmp_path):
    "A copy of the checkout that a test may change."
    return copy_checkout(tmp_path/'checkout')


@pytest.fixture(autouse=True, scope='session')
def no_last_words():
    "The command line, called in this process, keeps notes for an end that does not come; at Python's own end their stream is closed."
    yield
    for h in logging.getLogger('dpo_nb').handlers: getattr(h, 'buffer', []).clear()
