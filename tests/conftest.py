"What several test files share: a copy of the checkout to change without harm."
import os, shutil, subprocess, sys
from pathlib import Path

import pytest

from project import ROOT

os.environ.setdefault('HF_HUB_OFFLINE', '1')


def copy_checkout(dest):
    "Every file that git tracks or would track, at `dest`; builds, environments and training output stay behind."
    listed = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split('\0')):
        src, dst = ROOT/name, dest/name
        if not os.path.lexists(src): continue  # deleted, not yet committed
        dst.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(src, dst, follow_symlinks=False)
    return dest


def run(*args, cwd=ROOT, check=True, **env):
    "Run a command of this environment; with `cwd` elsewhere the package is imported from there."
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])
    env = {**os.environ, 'PATH': path, 'PYTHONPATH': '' if cwd == ROOT else str(cwd), **env}
    done = subprocess.run([str(a) for a in args], cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, f'{args} exited with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}'
    return done


@pytest.fixture
def checkout(tmp_path):
    "A copy of the checkout that a test may change."
    return copy_checkout(tmp_path/'checkout')
