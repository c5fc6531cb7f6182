"nbdev's processed pages, mended: links, names, folds, the line of buttons under a title."
import os, re, shutil

from execnb.nbio import mk_cell, read_nb, write_nb
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

from project import ROOT, colab_url, doc_url, fill, modidx, pages, settings, source_url
from web import folds, home

PROC = ROOT/'_proc'

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
    "The line under a page's title: run it, take it away, read its source, open its code."
    colab, copy = colab_url(cfg, name), os.path.relpath(f'{NOTEBOOKS}/{name}', here.parent)
    links = [f'<a href="{colab}">Open in Colab</a>']*bool(colab)
    links += [f'<a href="{copy}" download>Download notebook</a>', f'<a href="{source_url(cfg, f"nbs/{name}")}">View source</a>']
    return '<p class="page-links">' + ' '.join(links) + '</p>'


def finish():
    "Mend the links of the processed pages, fold what need not be seen at once, and put the line of buttons under each title."
    cfg = settings()
    for src in pages():
        here = src.relative_to(ROOT/'nbs')
        nb = read_nb(PROC/here)
        said_once(nb.cells)
        code = '\n'.join(c.source for c in read_nb(src).cells if c.cell_type == 'code')
        rightly = lambda text: named_rightly(text, here.with_suffix('.html').as_posix(), code, cfg)
        for c in nb.cells:
            if c.cell_type == 'raw': c.source = re.sub(r'(?m)^output-file: .*\n', '', c.source)  # now the page's own name
            if c.cell_type == 'markdown': c.source = links(rightly(plain_markdown(fill(c.source, cfg))), here, cfg)
            for o in c.get('outputs', []):
                for mime in {'text/markdown', 'text/html'} & set(o.get('data', {})):
                    o.data[mime] = links(rightly(unlink_code(''.join(o.data[mime]))), here, cfg)
        nb.cells = folds.glance_later(folds.fold(nb.cells))
        if here.as_posix() == 'index.ipynb': nb.cells = home.dressed(nb.cells, cfg)
        else: nb.cells.insert(1, mk_cell(buttons(here, here, cfg), 'markdown'))
        write_nb(nb, PROC/here)
