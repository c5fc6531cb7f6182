#!/usr/bin/env python
"""Build the site: nbdev's processing into _proc/, then quarto if installed, else smalldocs, into _docs/.

    python scripts/docs.py [--renderer quarto|smalldocs]
"""
import argparse, html, os, re, shutil, subprocess, sys
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # nbdev runs the exported cells of several pages at once

from execnb.nbio import mk_cell, read_nb, write_nb
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

from project import ROOT, colab_url, doc_url, fill, modidx, pages, settings, source_url, unnumbered

PROC, OUT = ROOT/'_proc', ROOT/settings()['doc_path']
NOTEBOOKS = 'notebooks'  # where the site keeps the pages as notebooks, to download
LINK = re.compile(r'(\]\(|href="|src=")([^)"\s]+)')


def process():
    "nbdev's own step, from scratch: API tables, links of names, executed imports; pages land in _proc/."
    shutil.rmtree(PROC, ignore_errors=True)
    refresh_quarto_yml()
    proc_nbs('nbs', force=True)


def relative(url, here, cfg):
    "Point a link at the page's name on this site: published addresses become relative, numbers go, files beside nbs/ are the repository's."
    base = doc_url(cfg) + '/'
    if url.startswith(base): return os.path.relpath(url[len(base):], here.parent)
    path, mark, anchor = url.partition('#')
    if ':' in path or not path: return url
    inside = os.path.normpath(here.parent/path)
    if inside.startswith('../'): return source_url(cfg, inside[3:]) + mark + anchor
    return unnumbered(path) + mark + anchor if path.endswith('.ipynb') else url


def links(text, here, cfg):
    "Every link of `text`, Markdown or HTML, made `relative`."
    return LINK.sub(lambda m: m[1] + relative(m[2], here, cfg), text)


def plain_markdown(text):
    "nbdev links names inside links too, where one link is enough, and the renderer sees no formula that begins a cell of a table which ends in a digit."
    text = re.sub(r'\[\[(`[^`]+`)\]\([^)\s]*\)\]\(', r'[\1](', text)
    return re.sub(r'(?m)(?<=\| )(?=\$(?:[^|\n]|\\\|)*[\d²³] \|)', '&#8203;', text)


def unlink_code(text):
    "nbdev links names inside the signatures of its API tables too, where a reader sees raw Markdown: take those links out."
    parts = re.split(r'(?ms)(^```.*?^```$)', text)
    return ''.join(re.sub(r'\[(`[^`]+`)\]\([^)\s]*\)', r'\1', p) if i % 2 else p for i, p in enumerate(parts))


def said_once(cells):
    "nbdev prints a signature above the source of the same function: where the source is shown, keep heading and docstring only."
    for i, cell in enumerate(cells):
        if not cell.source.rstrip().endswith(')') or 'show_doc(' not in cell.source: continue
        shown = next((c.source for c in cells[i+1:] if 'show_doc(' not in c.source), '')
        if 'Exported source' not in shown: continue
        for o in cell.get('outputs', []):
            if text := o.get('data', {}).get('text/markdown'): o.data['text/markdown'] = re.sub(r'(?ms)^```python$.*?^```$\n*', '', ''.join(text), count=1)


def buttons(name, here, cfg):
    "The line under a page's title: run it, take it away, read its source."
    colab, copy = colab_url(cfg, name), os.path.relpath(f'{NOTEBOOKS}/{name}', here.parent)
    links = [f'<a href="{colab}">Open in Colab</a>']*bool(colab)
    links += [f'<a href="{copy}" download>Download notebook</a>', f'<a href="{source_url(cfg, f"nbs/{name}")}">View source</a>']
    return '<p class="page-links">' + ' · '.join(links) + '</p>'


def rename():
    "Give pages their names without numbers, which is where nbdev's links point, and mend the links between them."
    cfg = settings()
    for src in pages():
        name = src.relative_to(ROOT/'nbs')
        here = Path(unnumbered(name))
        nb = read_nb(PROC/name)
        said_once(nb.cells)
        for c in nb.cells:
            if c.cell_type == 'raw': c.source = re.sub(r'(?m)^output-file: .*\n', '', c.source)  # now the page's own name
            if c.cell_type == 'markdown': c.source = links(plain_markdown(fill(c.source, cfg)), here, cfg)
            for o in c.get('outputs', []):
                for mime in {'text/markdown', 'text/html'} & set(o.get('data', {})):
                    o.data[mime] = links(unlink_code(''.join(o.data[mime])), here, cfg)
        nb.cells.insert(1, mk_cell(buttons(name, here, cfg), 'markdown'))
        (PROC/name).unlink()
        if (PROC/here).exists(): sys.exit(f'two pages are called {here} on the site')
        write_nb(nb, PROC/here)
    bar = PROC/'sidebar.yml'
    bar.write_text('\n'.join(re.sub(r'^(\s*- )(\S+\.ipynb)$', lambda m: m[1]+unnumbered(m[2]), l) for l in bar.read_text().splitlines()))


MATH = re.compile(r'(?s)<span class="math (?:inline|display)">\s*(?:\\\((.*?)\\\)|\\\[(.*?)\\\])\s*</span>([.,;:!?)’]*)')
TEX = [(r'\\(begin|end)\{(?:aligned|split|gather|gathered)\}', r'\\\1{align*}'), (r'\\arg(?![a-z])', r'\\operatorname{arg}'),  # unknown to latex2mathml
       (r'\\sim(?![a-z])', '∼'), (r'\\nonumber(?![a-z])', '')]


def mathml(out):
    "Replace smalldocs' call to a script on another host by MathML in the page: formulas need no JavaScript and no network."
    from latex2mathml.converter import convert
    def formula(m):
        tex = source = html.unescape(m[1] or m[2]).strip()
        for old, new in TEX: tex = re.sub(old, new, tex)
        math = convert(tex, display='inline' if m[1] else 'block').replace('<mi>&</mi>', '<mi>&amp;</mi>')
        math = math.replace('<math ', f'<math alttext="{html.escape(source)}" ', 1)
        if not m[1]: return math + m[3]
        wide = len(html.unescape(re.sub('<[^>]*>', '', math))) > 28  # may not fit a phone, so site.css lets it scroll there
        return f'<span class="wide-formula">{math}</span>{m[3]}' if wide else f'<span class="formula">{math}{m[3]}</span>'  # no break before a full stop
    for page in out.rglob('*.html'):
        text = re.sub(r'\s*<(link|script)\b[^>]*/katex@[^>]*>(</script>)?', '', page.read_text(encoding='utf-8'))
        page.write_text(MATH.sub(formula, text), encoding='utf-8')


def own_fonts(out):
    "Themes fetch a font from another host; without it they use the reader's."
    for sheet in out.rglob('*.css'):
        sheet.write_text(re.sub(r'@import (?:url\()?["\']?https?:[^)"\']*["\']?\)?;', '', sheet.read_text(encoding='utf-8')), encoding='utf-8')


ROLES = [(r'(<div class="callout-header[^>]*?) data-bs-toggle', r'\1 role="button" tabindex="0" data-bs-toggle'),
         (r'(<a class="sidebar-item[^>]*?) role="navigation"', r'\1 role="button"'),
         *((f'<nav {start}', f'<nav aria-label="{name}" {start}') for start, name in (('class="navbar', 'Site'), ('id="quarto-sidebar"', 'Pages'),
           ('class="quarto-secondary-nav', 'Where this is'), ('class="page-navigation', 'Page before and after')))]
KEYS = """<script>document.addEventListener('keydown', e => {
if ((e.key === 'Enter' || e.key === ' ') && e.target.matches('.callout-header[role=button]')) { e.preventDefault(); e.target.click(); } });
for (const when of ['load', 'resize']) addEventListener(when, () => { for (const e of document.querySelectorAll('main .sd-table, main math[display=block], main .wide-formula'))
  if (e.scrollWidth > e.clientWidth + 1) e.tabIndex = 0; });
if (location.protocol === 'file:') { const ask = window.fetch;  // a page from disk may load a script, and nothing else
  window.fetch = (url, ...more) => !/search\\.json$/.test(url) ? ask(url, ...more) : new Promise((done, fail) => { const s = document.createElement('script');
    s.src = url.replace(/json$/, 'js'); s.onload = () => done({json: () => window.searchIndex}); s.onerror = fail; document.head.append(s); }); }</script>"""
EMPTY = (r'<th([^>]*)></th>', r'<td\1></td>')  # no head of a table


def reachable(out):
    "What opens with a click opens with a key, landmarks have names, and what scrolls sideways can be reached and scrolled."
    def focusable(m):
        wide = max(len(html.unescape(line)) for line in re.sub('<[^>]*>', '', m[2]).split('\n')) > 95
        return m[1] + ' tabindex="0"'*wide + m[2]
    for page in out.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        for old, new in [*ROLES, EMPTY]: text = re.sub(old, new, text)
        page.write_text(re.sub(r'(?s)(<pre)(\b.*?</pre>)', focusable, text).replace('</head>', f'{KEYS}</head>', 1), encoding='utf-8')


def search_from_disk(out):
    "The index of the search once more, as a script, for readers who open the site as files."
    (out/'search.js').write_text(f'window.searchIndex = {(out/"search.json").read_text(encoding="utf-8").strip()};\n', encoding='utf-8')


def anchors(out):
    "nbdev links a method to an anchor of its own, but documents it under its class: point such links there."
    named = {page for names in modidx()['syms'].values() for page, _ in names.values()}
    texts = {p: p.read_text(encoding='utf-8') for p in out.rglob('*.html')}
    ids = {p: set(re.findall(r'\bid="([^"]+)"', t)) for p, t in texts.items()}
    for p, text in texts.items():
        def mend(m):
            page = (p.parent/m[1]).resolve() if m[1] else p
            if page not in ids or m[2] in ids[page] or f'{page.relative_to(out).as_posix()}#{m[2]}' not in named: return m[0]
            above = m[2].partition('.')[0]
            return f'href="{m[1]}#{above}"' if above in ids[page] else f'href="{m[1] or page.name}"'
        p.write_text(re.sub(r'href="([^"#:]*)#([^"]+)"', mend, text), encoding='utf-8')


MISSING = """---
title: Nothing here
toc: false
search: false
---

No page has this address. Pages move when they are renumbered, but their names stay: try the search above, or begin again at
[the start](index.ipynb), the [gallery of losses](explain/gallery.ipynb) or the [questions](explain/questions.ipynb).
"""


def missing(out, cfg):
    "A host shows 404.html at any depth, so its relative links count from the top of the published site."
    page = out/'404.html'
    page.write_text(page.read_text(encoding='utf-8').replace('<head>', f'<head><base href="/{cfg["doc_baseurl"].strip("/")}/">', 1), encoding='utf-8')


def card(out, cfg):
    "The picture that other sites show beside a link to this one: title, description and the loss, 1200 by 630."
    import math, textwrap
    import matplotlib; matplotlib.use('agg')
    import matplotlib.pyplot as plt
    fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor='#2780e3')
    fig.text(.06, .72, cfg['title'], size=64, color='w', weight='bold')
    fig.text(.06, .6, textwrap.fill(cfg['description'], 38), size=24, color='w', va='top', linespacing=1.5)
    ax = fig.add_axes((.6, .14, .34, .7)); ax.axis('off')
    z = [i/20 for i in range(-80, 101)]
    ax.plot(z, [math.log1p(math.exp(-v)) for v in z], 'w', lw=6); ax.plot(0, math.log(2), 'wo', ms=18)
    ax.axhline(0, color='w', lw=1); ax.annotate('ln 2', (0, math.log(2)), (.5, 1.05), color='w', size=24)
    fig.savefig(out/'card.png'); plt.close(fig)


def downloads(out, cfg):
    "The pages as notebooks, outputs and all, with the addresses filled in."
    for src in pages():
        copy = out/NOTEBOOKS/src.relative_to(ROOT/'nbs')
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(fill(src.read_text(encoding='utf-8'), cfg), encoding='utf-8')


def render(renderer):
    "Render _proc/, put the site where it belongs, and return the renderer's warnings, broken links among them."
    built, warnings, cfg = PROC/OUT.name, [], settings()
    (PROC/'404.qmd').write_text(MISSING, encoding='utf-8')
    if renderer == 'quarto': subprocess.run(['quarto', 'render', '--no-cache'], cwd=PROC, check=True)
    else:
        from smalldocs.site import build
        warnings = [w for w in build(PROC, quiet=True).warnings if 'html-math-method' not in w]  # done by `mathml` instead
        mathml(built)
        own_fonts(built)
        reachable(built)
        search_from_disk(built)
    anchors(built)
    missing(built, cfg)
    card(built, cfg)
    downloads(built, cfg)
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
    rename()
    warnings = render(renderer)
    print(f'{sum(1 for _ in OUT.rglob("*.html"))} pages in {OUT}, rendered by {renderer}')
    if warnings: sys.exit('\n'.join(warnings))


if __name__ == '__main__': main()
