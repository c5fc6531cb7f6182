"What the renderer made, mended: formulas, themes, keys and names, anchors, old addresses. Works on the HTML of quarto and of smalldocs."
import html, os, re, shutil, sys
from pathlib import Path

from execnb.nbio import read_nb
import yaml

from project import ROOT, modidx
from web import order

MATH = re.compile(r'(?s)([(\[“‘]*)<span class="math (inline|display)">\s*(?:\\[(\[])?(.*?)(?:\\[)\]])?\s*</span>([.,;:!?)\]’”-]*)')
def root(out, page):
    "The way from a page to the top of the site: `../`, or nothing."
    up = os.path.relpath(out, page.parent)
    return '' if up == '.' else f'{up}/'


KATEX = """<link rel="stylesheet" href="FOLDERkatex/katex.min.css">
<script defer src="FOLDERkatex/katex.min.js"></script><script defer src="FOLDERkatex/copy-tex.min.js"></script><script defer src="FOLDERsite/formulas.js"></script>
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
        if n: text = text.replace('</head>', KATEX.replace('FOLDER', root(out, page)) + '</head>', 1)
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
EMPTY = (r'<th([^>]*)></th>', r'<td\1></td>')  # no head of a table


def columns(text):
    "The longest line of a block of HTML code, in characters."
    return max(len(html.unescape(line)) for line in re.sub('<[^>]*>', '', text).split('\n'))


def reachable(out):
    "What opens with a click opens with a key, and landmarks have names."
    for page in out.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        for old, new in [*ROLES, EMPTY]: text = re.sub(old, new, text)
        page.write_text(text, encoding='utf-8')


def wide_code(out):
    "A block of code with long lines knows how many columns it has, so that its letters can become a little smaller."
    def measured(m):
        n = columns(m[2])
        return f'{m[1]} style="--cols:{n}"{m[2]}' if n > 88 else m[0]
    for page in out.rglob('*.html'):
        page.write_text(re.sub(r'(?s)(<pre)(\b(?![^>]*style=).*?</pre>)', measured, page.read_text(encoding='utf-8')), encoding='utf-8')


SCRIPTS = """<link rel="preload" href="FOLDERsite/fonts/serif.woff2" as="font" type="font/woff2" crossorigin>
<script>document.documentElement.classList.add('js')</script><script defer src="FOLDERsite/site.js" data-root="FOLDER"></script><script defer src="FOLDERsite/search.js"></script>
"""


def dressed(out):
    "Each page loads the site's scripts, from nbs/site/, and says above its title where it stands."
    shutil.copytree(ROOT/'nbs'/'site', out/'site', dirs_exist_ok=True, ignore=shutil.ignore_patterns('story.json'))
    for page in out.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        text = text.replace('</head>', SCRIPTS.replace('FOLDER', root(out, page)) + '</head>', 1)
        name = page.relative_to(out).with_suffix('.ipynb').as_posix()
        where = order.place(name)
        if '<figure class="story"' in text: text = text.replace('</head>', f'<script defer src="{root(out, page)}site/story.js"></script></head>', 1)
        if where:
            group, i, n = where
            took = order.minutes(read_nb(ROOT/'nbs'/name).cells)
            kicker = f'<p class="kicker">{group} · {i} of {n} · {took} min</p>'
            text = re.sub(r'<h1 class="title"', lambda m: kicker + m[0], text, count=1)
        page.write_text(text, encoding='utf-8')


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


