#!/usr/bin/env python
"""Write the first code cell of every page: where dpo_nb is missing, as in Colab, it installs the page's release.

    python scripts/first_cell.py                     # into every page
    python scripts/first_cell.py nbs/03_pairs.ipynb  # into some pages
    python scripts/first_cell.py --check             # exit 1 if a page has another one

`nbdev_test` and scripts/run_pages.py skip the cell, and the site leaves it out: it is for those who run the notebook somewhere else.
"""
import argparse, json, re, sys
from pathlib import Path

from execnb.nbio import nb2str

from project import ROOT, pages, settings

ID = 'install'
CELL = '''#| eval: false
#| hide
# Where the release of this page is missing, as in Colab, install it; the torch that is there stays.
import importlib.metadata, subprocess, sys
def _version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return None
_other = _version('NAME') != 'VERSION' and 'google.colab' in sys.modules
if _other or None in (_version('NAME'), _version('fastcore')):
    _torch = [f"torch=={_version('torch')}"] if _version('torch') else []
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', 'NAME==VERSION', 'FASTCORE', *_torch], check=True)
    importlib.invalidate_caches()
print('this page: NAME VERSION; here:', ', '.join(f'{p} {_version(p)}' for p in ('NAME', 'torch', 'transformers')))'''
FETCH = '''
# The page reads files that lie beside it in the repository, and nothing else of it.
import os, urllib.request
for _file in [p for p in FILES if not os.path.exists(p)]:
    urllib.request.urlretrieve(f"{importlib.metadata.metadata('NAME')['Home-page']}/raw/BRANCH/FOLDER/{_file}", _file)'''


def companions(page, nb):
    "Names of the files beside a page that its code reads."
    code = '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code' and c['id'] != ID)
    return sorted(f.name for f in page.parent.glob('*.json') if repr(f.name) in code)


def cell(page, nb, cfg=settings()):
    "The source of a page's cell: names and numbers come from settings.ini; of the development tools, pages import fastcore.test."
    files, text = companions(page, nb), CELL
    if files: text += FETCH.replace('FILES', repr(files)).replace('FOLDER', page.parent.relative_to(ROOT).as_posix()).replace('BRANCH', cfg['branch'])
    fastcore = next(r for r in cfg['dev_requirements'].split() if re.match(r'fastcore\b', r))
    return text.replace('NAME', cfg['lib_name']).replace('VERSION', cfg['version']).replace('FASTCORE', fastcore)


def with_cell(page, nb):
    "The notebook with the cell, in front of all other code."
    new = dict(cell_type='code', execution_count=None, id=ID, metadata={}, outputs=[], source=cell(page, nb).splitlines(keepends=True))
    cells = [c for c in nb['cells'] if c['id'] != ID]
    first = next(i for i, c in enumerate(cells) if c['cell_type'] == 'code')
    return nb | dict(cells=cells[:first] + [new] + cells[first:])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--check', action='store_true')
    ap.add_argument('paths', nargs='*', type=Path)
    args = ap.parse_args()
    stale = []
    for p in [p.resolve() for p in args.paths] or pages():
        nb = json.loads(p.read_text(encoding='utf-8'))
        if (new := with_cell(p, nb)) == nb: continue
        stale.append(str(p.relative_to(ROOT)))
        if not args.check: p.write_text(nb2str(new), encoding='utf-8')
    if args.check and stale: sys.exit(f'another first cell in {", ".join(stale)}: run scripts/first_cell.py')
    if stale: print('\n'.join(stale))


if __name__ == '__main__': main()
