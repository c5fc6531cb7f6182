#!/usr/bin/env python
"""Build the site: nbdev's processing into _proc/, then quarto if installed, else smalldocs, into _docs/.

    python scripts/docs.py [--renderer quarto|smalldocs]
"""
import argparse, html, json, os, re, shutil, subprocess, sys
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # nbdev runs the exported cells of several pages at once

from execnb.nbio import mk_cell, read_nb, write_nb
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
import yaml

from project import ROOT, colab_url, doc_url, fill, modidx, pages, settings, source_url

PROC, OUT = ROOT/'_proc', ROOT/settings()['doc_path']
NOTEBOOKS = 'notebooks'  # where the site keeps the pages as notebooks, to download
LINK = re.compile(r'(\]\(|href="|src=")([^)"\s]+)')


def process():
    "nbdev's own step, from scratch: API tables, links of names, executed imports; pages land in _proc/."
    shutil.rmtree(PROC, ignore_errors=True)
    refresh_quarto_yml()
    proc_nbs('nbs', force=True)


def relative(url, here, cfg):
    "Point a link at the page's name on this site: published addresses become relative, files beside nbs/ are the repository's."
    base = doc_url(cfg) + '/'
    if url.startswith(base): return os.path.relpath(url[len(base):], here.parent)
    path, mark, anchor = url.partition('#')
    if ':' in path or not path: return url
    inside = os.path.normpath(here.parent/path)
    if inside.startswith('../'): return source_url(cfg, inside[3:]) + mark + anchor
    return url


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


def own_names(here):
    "Where the page `here` documents each name it exports, and each method whose name is an ordinary word."
    named = [(full.removeprefix(f'{module}.'), place) for module, names in modidx()['syms'].items() for full, (place, _) in names.items()]
    return {name.rpartition('.')[2]: place for name, place in named if place.partition('#')[0] == here and ('.' not in name or name.rpartition('.')[2].isalpha())}


def named_rightly(text, here, code, cfg):
    """nbdev links whatever in backticks is called like something it knows, and the last page that exports a name wins. A name of this page leads to this page. One of
    another page must be imported here or look like nothing else: an ordinary word, a private name, an argument or a column of this page, or TRL's own class is no link."""
    own, imported = own_names(here), set(re.findall(r'\w+', ' '.join(re.findall(r'(?m)^ *from dpo_nb\S* import (.+)$', code))))
    def judge(m):
        name, page = re.sub(r'\(.*', '', m[2]), m[3]
        if page == here: return m[0]
        if m[1] or m[5]: return f'{m[1] or ""}`{m[2]}`{m[5] or ""}'
        if name in own: return f'[`{m[2]}`]({doc_url(cfg)}/{own[name]})'
        used = re.search(rf'\b{name}=(?!=)|([\'"]){name}\1', code)
        rare = re.search('[_A-Z]', name) and not name.startswith('_') and not used
        return m[0] if rare or name in imported else f'`{m[2]}`'
    return re.sub(rf"(TRL(?: [\d.]+)?['’]s )?\[`([^`\n]+)`\]\({re.escape(doc_url(cfg))}/([^)#\s]+)#([^)\s]*)\)( of TRL\b)?", judge, text)


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


def finish():
    "Mend the links of the processed pages, and put the line of buttons under each title."
    cfg = settings()
    for src in pages():
        name = src.relative_to(ROOT/'nbs')
        here = name
        nb = read_nb(PROC/name)
        said_once(nb.cells)
        code = '\n'.join(c.source for c in read_nb(src).cells if c.cell_type == 'code')
        rightly = lambda text: named_rightly(text, here.with_suffix('.html').as_posix(), code, cfg)
        for c in nb.cells:
            if c.cell_type == 'raw': c.source = re.sub(r'(?m)^output-file: .*\n', '', c.source)  # now the page's own name
            if c.cell_type == 'markdown': c.source = links(rightly(plain_markdown(fill(c.source, cfg))), here, cfg)
            for o in c.get('outputs', []):
                for mime in {'text/markdown', 'text/html'} & set(o.get('data', {})):
                    o.data[mime] = links(rightly(unlink_code(''.join(o.data[mime]))), here, cfg)
        nb.cells.insert(1, mk_cell(buttons(name, here, cfg), 'markdown'))
        write_nb(nb, PROC/here)


MATH = re.compile(r'(?s)([(\[“‘]*)<span class="math (inline|display)">\s*(?:\\[(\[])?(.*?)(?:\\[)\]])?\s*</span>([.,;:!?)\]’”-]*)')
KATEX = """<link rel="stylesheet" href="FOLDER/katex.min.css">
<script defer src="FOLDER/katex.min.js"></script><script defer src="FOLDER/copy-tex.min.js"></script>
<script>document.addEventListener('DOMContentLoaded', () => { for (const e of document.querySelectorAll('.tex'))
  katex.render(e.textContent, e, {displayMode: e.matches('.display'), throwOnError: false}); });
for (const when of ['load', 'resize']) addEventListener(when, () => { for (const e of document.querySelectorAll('main .formula')) {  // scrolls where it cannot break
  const wide = [...e.querySelectorAll('.base')].some(b => b.offsetWidth > e.closest('p, li, td, th, div').clientWidth);
  e.classList.toggle('wide', wide); wide ? e.tabIndex = 0 : e.removeAttribute('tabindex'); } });</script>
"""


def formulas(out):
    "Formulas are drawn by the KaTeX that lies in nbs/katex/, on pages that have any; the TeX is what a page holds, and what is read without JavaScript."
    def formula(m):
        before, kind, tex, after = m[1], m[2], m[3].strip(), m[4]
        if kind == 'display': return f'{before}<span class="tex display">{tex}</span>{after}'
        short = ' short'*(len(tex) < 24)  # does not break, nor part from a bracket in front of it; of a longer one the last piece leaves room for a full stop
        room = f' style="--after: {.36*len(after):.2f}em"'*bool(after)
        return f'<span class="formula{short}"{room}>{before}<span class="tex">{tex}</span><span class="after">{after}</span></span>'.replace('<span class="after"></span>', '')
    shutil.copytree(ROOT/'nbs'/'katex', out/'katex', dirs_exist_ok=True)
    sheet = out/'katex'/'katex.min.css'
    sheet.write_text(re.sub(r',url\([^)]*\.(?:woff|ttf)\) format\("\w+"\)', '', sheet.read_text(encoding='utf-8')), encoding='utf-8')  # woff2 is enough
    for page in out.rglob('*.html'):
        text = re.sub(r'\s*<(link|script)\b[^>]*/(?:katex|auto-render)[^>]*>(</script>)?', '', page.read_text(encoding='utf-8'))
        text, n = MATH.subn(formula, text)
        if n: text = text.replace('</head>', KATEX.replace('FOLDER', os.path.relpath(out/'katex', page.parent)) + '</head>', 1)
        page.write_text(text, encoding='utf-8')


def own_fonts(out):
    "Themes fetch a font from another host; without it they use the reader's."
    for sheet in out.rglob('*.css'):
        sheet.write_text(re.sub(r'@import (?:url\()?["\']?https?:[^)"\']*["\']?\)?;', '', sheet.read_text(encoding='utf-8')), encoding='utf-8')


def trimmed(css, words):
    "A style sheet without the rules for classes that are not among `words`."
    kept, i = [], 0
    while (start := css.find('{', i)) >= 0:
        depth, end = 1, start + 1
        while depth: depth, end = depth + (css[end] == '{') - (css[end] == '}'), end + 1
        before, rule = re.fullmatch(r'(?s)(.*?(?:;|\*/)|)([^;/]*)', css[i:start]).groups()
        body, i = css[start+1:end-1], end
        if rule.startswith(('@media', '@supports')): body = trimmed(body, words)
        elif not rule.startswith('@'):
            classes = lambda one: re.findall(r'\.(-?[A-Za-z_][\w-]*)', re.sub(r'\[[^]]*\]|:not\([^)]*\)', '', one))
            rule = ','.join(one for one in re.split(r',(?![^(]*\))', rule) if words.issuperset(classes(one)))
        kept.append(before + (f'{rule}{{{body}}}' if rule and body else ''))
    return ''.join(kept) + css[i:]


def trim(out):
    "The themes and the icons hold rules for everything that a site might have, half a megabyte; this one keeps what its pages and scripts name."
    named = [''.join(m) for page in out.rglob('*.html') for m in re.findall(r'class="([^"]*)"|(?s:(<script\b.*?</script>))', page.read_text(encoding='utf-8'))]
    words = {w for text in [*named, *(f.read_text(encoding='utf-8') for f in out.rglob('site_libs/**/*.js'))] for w in re.findall(r'[\w-]+', text)}
    for sheet in [*out.rglob('themes/*.css'), *out.rglob('bootstrap-icons*.css')]:
        sheet.write_text(trimmed(sheet.read_text(encoding='utf-8'), words), encoding='utf-8')


ROLES = [(r'(<div class="callout-header[^>]*?) data-bs-toggle', r'\1 role="button" tabindex="0" data-bs-toggle'),
         (r'(<a class="sidebar-item[^>]*?) role="navigation"', r'\1 role="button"'),
         *((f'<nav {start}', f'<nav aria-label="{name}" {start}') for start, name in (('class="navbar', 'Site'), ('id="quarto-sidebar"', 'Pages'),
           ('class="quarto-secondary-nav', 'Where this is'), ('class="page-navigation', 'Page before and after')))]
KEYS = """<script>document.addEventListener('keydown', e => {
if ((e.key === 'Enter' || e.key === ' ') && e.target.matches('.callout-header[role=button]')) { e.preventDefault(); e.target.click(); } });
for (const when of ['load', 'resize']) addEventListener(when, () => { for (const e of document.querySelectorAll('main .sd-table, main .katex-display'))
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


SAID = dict(zip('alpha beta gamma delta Delta varepsilon eta theta kappa lambda mu pi rho sigma tau phi chi Psi ell partial sum int infty cdot times sim approx pm le ge ne neq in to mid star sqrt'.split(),
                'α β γ δ Δ ε η θ κ λ μ π ρ σ τ φ χ Ψ ℓ ∂ Σ ∫ ∞ · × ∼ ≈ ± ≤ ≥ ≠ ≠ ∈ → | * √'.split())) | {word: f' {word} ' for word in 'log ln exp max min tanh'.split()}


def plain_tex(text):
    r"The commonest TeX as a line of plain text shows it: `\log\pi_\theta` is `log π_θ`."
    text = re.sub(r'\\(?:mathrm|mathbb|mathcal|text|operatorname)(?:\{([\w ]+)\}| )|\\[bB]igg?[lr]?(?![a-z])', r'\1', text)
    text = re.sub(r'\\([A-Za-z]+)', lambda m: SAID.get(m[1], m[0]), text)
    text = re.sub(r'\\[,;!]', ' ', text).replace('\\|', '‖')
    return re.sub(r'([_^])\{(\w+)\}', r'\1\2', re.sub(' {2,}', ' ', text))


def search_index(out):
    "No TeX in what the search shows; and the index once more as a script, for readers who open the site as files."
    index = [{k: plain_tex(v) if k == 'text' else v for k, v in entry.items()} for entry in json.loads((out/'search.json').read_text(encoding='utf-8'))]
    text = json.dumps(index, ensure_ascii=False)
    (out/'search.json').write_text(text, encoding='utf-8')
    (out/'search.js').write_text(f'window.searchIndex = {text};\n', encoding='utf-8')


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

No page has this address. Try the search above, or begin again at
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


SIGNPOST = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>This page has moved</title><link rel="canonical" href="HERE"><meta http-equiv="refresh" content="1; url=HERE">
<script>location.replace('HERE' + location.hash)</script></head><body><p>This page has moved: <a href="HERE">HERE</a>.</p></body></html>
"""


def signposts(out):
    "An old address of a page leads to where it is now."
    for old, new in yaml.safe_load((ROOT/'nbs'/'moved.yml').read_text(encoding='utf-8')).items():
        page = out/f'{old}.html'
        if page.exists(): sys.exit(f'nbs/moved.yml says that {old} has moved, and there is a page of this name')
        if not (out/f'{new}.html').exists(): sys.exit(f'nbs/moved.yml sends {old} to {new}, which is no page')
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(SIGNPOST.replace('HERE', os.path.relpath(f'{new}.html', Path(old).parent)), encoding='utf-8')


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
        warnings = [w for w in build(PROC, quiet=True).warnings if 'html-math-method' not in w]  # done by `formulas`
        own_fonts(built)
        trim(built)
        reachable(built)
        search_index(built)
    formulas(built)
    anchors(built)
    missing(built, cfg)
    card(built, cfg)
    downloads(built, cfg)
    signposts(built)
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
