#!/usr/bin/env python
"""Write the first code cell of every page: where dpo_nb is missing, as in Colab, it installs the page's release.

    python scripts/first_cell.py                     # into every page
    python scripts/first_cell.py nbs/pairs.ipynb  # into some pages
    python scripts/first_cell.py --check             # exit 1 if a page has another one

`nbdev_test` and scripts/run_pages.py skip the cell, and the site leaves it out: it is for those who run the notebook somewhere else.
"""
import argparse, json, os, re, sys
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
# The page reads files of the repository that are not in the package: those that are not here are put here.
import os, posixpath, urllib.request
for _file in FILES:
    _here = _file.replace('../', '')
    if os.path.exists(_file) or os.path.exists(_here): continue
    os.makedirs(os.path.dirname(_here) or '.', exist_ok=True)
    urllib.request.urlretrieve(f"{importlib.metadata.metadata('NAME')['Home-page']}/raw/BRANCH/{posixpath.normpath('FOLDER/' + _file)}", _here)'''


def companions(page, nb):
    "Files of the repository, by their paths from the page, that its code names; for a folder, or a name with a {gap}, those whose own names the code says."
    code = '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code' and c['id'] != ID)
    found = set()
    for text in re.findall(r'''['"]([\w./{}-]*[\w}]\.(?:json|ya?ml)|(?:\.\./)+\w+)['"]''', code):
        if text.startswith('/'): continue
        for path in page.parent.glob(re.sub(r'\{\w+\}', '*', text)):
            for f in path.iterdir() if path.is_dir() else [path]:
                said = f.name in text or repr(f.stem) in code
                if said and f.suffix in ('.json', '.yaml', '.yml'): found.add(Path(os.path.relpath(f, page.parent)).as_posix())
    return sorted(found)


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
