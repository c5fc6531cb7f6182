#!/usr/bin/env python
"""Run every notebook as its readers do: with the built wheel, in a folder that is not the checkout.

    python scripts/test_notebooks.py [nbs/03_pairs.ipynb]

The pages, with the files beside them and configs/, are copied elsewhere. The environment is a new one; it holds the wheel and sees the
other packages of this environment, but not the checkout that is installed here to be edited. Cells headed by a flag of settings.ini's
tst_flags are skipped, as `nbdev_test` does.
"""
import argparse, os, subprocess, sys, sysconfig, tempfile, venv
from pathlib import Path

from project import ROOT, copy_checkout

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


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('page', nargs='?', help='one page, or a glob; without it all of them')
    page = ap.parse_args().page
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder).resolve()
        python = environment(folder/'env', build(folder))
        pages = copy_checkout(folder/'pages', 'nbs', 'configs', 'settings.ini')
        env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(PATH=f'{python.parent}{os.pathsep}{os.environ["PATH"]}', VIRTUAL_ENV=str(folder/'env'))
        run = lambda *args, **kw: subprocess.run([python, *args], cwd=pages, env=env, stdin=subprocess.DEVNULL, **kw)
        found = run('-c', 'import dpo_nb; print(dpo_nb.__file__)', capture_output=True, text=True, check=True).stdout.strip()
        if not Path(found).is_relative_to(folder/'env') or ROOT in Path(found).parents: sys.exit(f'the pages would run with {found}, which is not the wheel')
        print(f'pages in {pages}, dpo_nb in {found}', flush=True)
        sys.exit(run(BIN/'nbdev_test', '--do_print', *(['--path', page] if page else [])).returncode)


if __name__ == '__main__': main()
