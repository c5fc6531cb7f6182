#!/usr/bin/env python
"""Run pages top to bottom in an empty kernel and save their outputs.

    python scripts/run_pages.py                     # every page
    python scripts/run_pages.py nbs/pairs.ipynb  # some pages

A page that fails is left as it was on disk, and the exit code is 1. Widget state is never saved.
"""
import argparse, os, sys, time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import clean_nb
from execnb.nbio import dict2nb, nb2str

from project import ROOT, directives, pages, settings

SKIP = set(settings()['tst_flags'].split())  # such cells keep the outputs they have
QUIET = dict(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE', HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', TOKENIZERS_PARALLELISM='false', PYTHONHASHSEED='0',
             HF_DATASETS_DISABLE_PROGRESS_BARS='1', HF_HUB_DISABLE_PROGRESS_BARS='1', TQDM_DISABLE='1', CUDA_VISIBLE_DEVICES='')


def skipped(cell):
    "Cells that `nbdev_test` skips too: those headed by a flag of settings.ini's tst_flags, or by `eval: false`."
    found, _ = directives(cell.source)
    return bool(SKIP & set(found)) or found.get('eval') == 'false'


def run(path):
    "Execute the notebook at `path` in a fresh kernel and write it back, cleaned."
    nb = nbformat.read(path, as_version=4)
    left = [c for c in nb.cells if c.cell_type == 'code' and skipped(c)]
    kept = {c.id: c.pop('outputs') for c in left}
    for c in left: c.cell_type = 'raw'
    client = NotebookClient(nb, timeout=600, kernel_name='python3', store_widget_state=False,
                            coalesce_streams=True, resources={'metadata': {'path': str(path.parent)}})
    client.execute(env={**os.environ, **QUIET})
    for c in left: c.cell_type, c['outputs'], c['execution_count'] = 'code', kept[c.id], None
    nb.metadata = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    d = dict2nb(nb)
    clean_nb(d, clear_all=False, clean_ids=True)
    path.write_text(nb2str(d), encoding='utf-8')


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('paths', nargs='*', type=Path)
    bad = 0
    for p in [p.resolve() for p in ap.parse_args().paths] or pages():
        t = time.time()
        try: run(p)
        except CellExecutionError as e:
            bad += 1
            print(f'FAILED {p.relative_to(ROOT)}\n{e}', file=sys.stderr, flush=True)
        else: print(f'{time.time()-t:6.1f} s  {p.relative_to(ROOT)}', flush=True)
    sys.exit(bool(bad))


if __name__ == '__main__': main()
