#!/usr/bin/env python
"""Run every notebook as its readers do: with the built wheel, in a folder that is not the checkout.

    python scripts/test_notebooks.py [nbs/pairs.ipynb]

Each page is copied into a folder of its own, with the files that its first cell would fetch and nothing else. The environment is a new one; it holds the wheel and sees the
other packages of this environment, but not the checkout that is installed here to be edited. Cells headed by a flag of settings.ini's
tst_flags are skipped, as `nbdev_test` does.
"""
import argparse, json, os, shutil, subprocess, sys, sysconfig, tempfile, venv
from fnmatch import fnmatch
from pathlib import Path

from first_cell import companions
from project import ROOT, copy_checkout, pages

BIN = Path(sys.executable).parent


def build(folder):
    "The wheel, built from a copy of the checkout."
    copy_checkout(folder/'checkout')
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '-w', folder, folder/'checkout'], check=True)
    return next(folder.glob('*.whl'))


def environment(folder, wheel):
    "A new environment with the wheel, and this one's packages behind it; `.pth` files there, such as that of the checkout, are not read."
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder/'bin'/'python'
    here = Path(subprocess.check_output([python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'], text=True).strip())
    (here/'behind.pth').write_text('\n'.join(sorted({sysconfig.get_path('purelib'), sysconfig.get_path('platlib')})) + '\n')
    subprocess.run([sys.executable, '-m', 'pip', '--disable-pip-version-check', '--python', python, 'install', '--quiet', '--no-deps', '--no-index', wheel], check=True)
    return python


def alone(src, folder):
    "A page in an empty folder, as in Colab after its first cell."
    home = folder/src.relative_to(ROOT).with_suffix('')
    home.mkdir(parents=True)
    shutil.copy(src, home)
    for name in companions(src, json.loads(src.read_text(encoding='utf-8'))):
        here = home/name.replace('../', '')
        here.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(src.parent/name, here)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('page', nargs='?', help='one page, or a glob; without it all of them')
    page = ap.parse_args().page
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder).resolve()
        python = environment(folder/'env', build(folder))
        work = copy_checkout(folder/'pages', 'settings.ini')
        chosen = [p for p in pages() if not page or fnmatch(p.relative_to(ROOT).as_posix(), page)]
        if not chosen: sys.exit(f'{page} is no page')
        for p in chosen: alone(p, work)
        env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(PATH=f'{python.parent}{os.pathsep}{os.environ["PATH"]}', VIRTUAL_ENV=str(folder/'env'))
        run = lambda *args, **kw: subprocess.run([python, *args], cwd=work, env=env, stdin=subprocess.DEVNULL, **kw)
        found = run('-c', 'import dpo_nb; print(dpo_nb.__file__)', capture_output=True, text=True, check=True).stdout.strip()
        if not Path(found).is_relative_to(folder/'env') or ROOT in Path(found).parents: sys.exit(f'the pages would run with {found}, which is not the wheel')
        print(f'pages in {work}, dpo_nb in {found}', flush=True)
        sys.exit(run(BIN/'nbdev_test', '--do_print').returncode)


if __name__ == '__main__': main()
