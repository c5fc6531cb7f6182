#!/usr/bin/env python
"""Build the site: nbdev's processing into _proc/, then quarto if installed, else smalldocs, into _docs/.

    python scripts/docs.py [--renderer quarto|smalldocs]

The steps are in scripts/web/; the look and the scripts of the site are files of nbs/site/.
"""
import argparse, os, re, shutil, subprocess, sys

os.environ.setdefault('OMP_NUM_THREADS', '1')  # nbdev runs the exported cells of several pages at once

import yaml

from project import ROOT, fill, pages, settings
from web import api, cards, html, search
from web.pages import NOTEBOOKS, PROC, finish, process

OUT = ROOT/settings()['doc_path']

MISSING = """---
title: Nothing here
toc: false
search: false
---

No page has this address. Try the search above, or begin again at
[the start](index.ipynb), the [gallery of losses](explain/gallery.ipynb) or the [questions](explain/questions.ipynb).
"""


def missing(out, cfg):
    "A host shows 404.html at any depth, so its relative links count from the top of the published site."
    page = out/'404.html'
    page.write_text(page.read_text(encoding='utf-8').replace('<head>', f'<head><base href="/{cfg["doc_baseurl"].strip("/")}/">', 1), encoding='utf-8')


def extra_pages(cfg):
    "Pages that are no notebooks: the one of all names, which joins the sidebar, and the one for unknown addresses."
    (PROC/'404.qmd').write_text(MISSING, encoding='utf-8')
    (PROC/'names.qmd').write_text(api.page(), encoding='utf-8')
    sidebar = yaml.safe_load((PROC/'sidebar.yml').read_text(encoding='utf-8'))
    contents = sidebar['website']['sidebar']['contents']
    contents[0] = dict(text='Start', href='index.ipynb')
    last = contents[-1]['contents']
    if 'names.qmd' not in last: last.append('names.qmd')
    (PROC/'sidebar.yml').write_text(yaml.safe_dump(sidebar, allow_unicode=True, sort_keys=False), encoding='utf-8')
    config = PROC/'_quarto.yml'
    text = fill(config.read_text(encoding='utf-8'), cfg)
    config.unlink()  # nbdev copies it as a link to the one of the checkout
    config.write_text(text, encoding='utf-8')


def downloads(out, cfg):
    "The pages as notebooks, outputs and all, with the addresses filled in."
    for src in pages():
        copy = out/NOTEBOOKS/src.relative_to(ROOT/'nbs')
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(fill(src.read_text(encoding='utf-8'), cfg), encoding='utf-8')


def render(renderer):
    "Render _proc/, put the site where it belongs, and return the renderer's warnings, broken links among them."
    built, warnings, cfg = PROC/OUT.name, [], settings()
    extra_pages(cfg)
    if renderer == 'quarto': subprocess.run(['quarto', 'render', '--no-cache'], cwd=PROC, check=True)
    else:
        from smalldocs.site import build
        warnings = [w for w in build(PROC, quiet=True).warnings if 'html-math-method' not in w]  # done by `formulas`
        html.own_fonts(built)
        html.trim(built)
        html.reachable(built)
    html.dressed(built)
    html.wide_code(built)
    html.formulas(built)
    html.anchors(built)
    search.search_index(built)
    missing(built, cfg)
    cards.cards(built, cfg)
    downloads(built, cfg)
    html.signposts(built)
    (built/'.nojekyll').touch()
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.move(built, OUT)
    return warnings


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--renderer', choices=('quarto', 'smalldocs'), default='quarto' if shutil.which('quarto') else 'smalldocs')
    renderer = ap.parse_args().renderer
    os.chdir(ROOT)
    process()
    finish()
    warnings = render(renderer)
    print(f'{sum(1 for _ in OUT.rglob("*.html"))} pages in {OUT}, rendered by {renderer}')
    if warnings: sys.exit('\n'.join(warnings))


if __name__ == '__main__': main()
