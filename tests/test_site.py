"The site: it builds, no link is broken, and in a browser each page is whole, legible and alive, without asking another host."
import json, math, os, re, shutil, sys, time
from contextlib import contextmanager
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlparse

import pytest
import yaml
from conftest import copy_checkout, run
from project import ROOT, colab_url, directives, fill, pages, settings, source_url

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync']
PAGES = [p.relative_to(ROOT/'nbs').with_suffix('.html').as_posix() for p in pages()]
IN_ORDER = [n.replace('.ipynb', '.html') for n in re.findall(r'- (\S+\.ipynb)', (ROOT/'nbs'/'sidebar.yml').read_text(encoding='utf-8'))]

MOVED = set(yaml.safe_load((ROOT/'nbs'/'moved.yml').read_text(encoding='utf-8')))  # old addresses, which lead on
GROUPS = {part['section']: part['contents'] for part in yaml.safe_load((ROOT/'nbs'/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents'] if isinstance(part, dict)}

pytestmark = pytest.mark.skipif(not shutil.which('quarto') and sys.version_info < (3, 11), reason='smalldocs needs Python 3.11')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site, built from a copy of the checkout; the build exits with an error if the renderer warns of anything."
    checkout = copy_checkout(tmp_path_factory.mktemp('site')/'checkout')
    started = time.monotonic()
    run(sys.executable, 'scripts/docs.py', cwd=checkout)
    (checkout/'_docs'/'.seconds').write_text(f'{time.monotonic() - started:.0f}')
    return checkout/'_docs'


def test_the_build_takes_less_than_five_minutes(site): assert int((site/'.seconds').read_text()) < 300


class Links(HTMLParser):
    "What a page points to, what it loads, and which anchors it has."
    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k) and (k == 'id' or tag == 'a')}
        if tag == 'a' and a.get('href') is not None: self.links.append(a['href'])
        elif tag == 'link' and a.get('rel') not in ('canonical', 'license') and a.get('href'): self.loads.append(a['href'])
        self.loads += [a[k] for k in ('src', 'poster', 'data') if a.get(k)]
        self.loads += [part.split()[0] for part in (a.get('srcset') or '').split(',') if part.strip()]
        self.loads += re.findall(r'url\(["\']?([^"\')]+)', a.get('style') or '')


@cache
def parsed(path): return Links(path.read_text(encoding='utf-8'))


def broken(site, page, url, external):
    "Why `url` on `page` leads nowhere, or None."
    parts = urlparse(url)
    if parts.scheme in ('data', 'mailto'): return None
    if parts.scheme or parts.netloc: return None if external else 'asks another host'
    target = (page.parent/unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir(): target /= 'index.html'
    if not target.is_relative_to(site): return 'leaves the site'
    if not target.is_file(): return 'does not exist'
    if parts.fragment and target.suffix == '.html' and unquote(parts.fragment) not in parsed(target).ids: return 'has no such anchor'


def test_every_page_is_built(site):
    assert {p.relative_to(site).as_posix() for p in site.rglob('*.html')} == {*PAGES, '404.html', 'names.html', *(f'{old}.html' for old in MOVED)}


def test_no_broken_link_and_nothing_from_another_host(site):
    site, found = site.resolve(), []
    for page in site.rglob('*.html'):
        links = parsed(page)
        for url, external in [*((u, True) for u in links.links), *((u, False) for u in links.loads)]:
            why = broken(site, page, url, external)
            if why: found.append(f'{page.relative_to(site)}: {url} {why}')
    for sheet in site.rglob('*.css'):
        for url in re.findall(r'(?:url\(|@import )["\']?([^"\')\s;]+)', sheet.read_text(encoding='utf-8')):
            why = None if url.startswith(('data:', '#')) else broken(site, sheet, url, external=False)
            if why: found.append(f'{sheet.relative_to(site)}: {url} {why}')
    assert not found, '\n'.join(found)


def test_katex_is_shared_and_only_where_there_are_formulas(site):
    "Every formula waits for the KaTeX of the site, which is the one of nbs/katex/; a page without formulas does not load it."
    for name in ('katex.min.js', 'copy-tex.min.js', 'LICENSE'): assert (site/'katex'/name).read_bytes() == (ROOT/'nbs'/'katex'/name).read_bytes()
    drawn = 0
    for page in site.rglob('*.html'):
        text, loads = page.read_text(encoding='utf-8'), parsed(page).loads
        formulas = len(re.findall(r'<span class="tex[ "]', text))
        assert 'class="math' not in text, f'{page.name}: a formula that is not drawn'
        want = {os.path.relpath(site/'katex'/name, page.parent) for name in ('katex.min.css', 'katex.min.js', 'copy-tex.min.js')} if formulas else set()
        assert {l for l in loads if 'katex/' in l} == want, page.name
        drawn += formulas
    assert drawn > 1000


def test_nothing_is_left_in_markdown(site):
    "Outside code and formulas a reader sees no mark-up: no brackets of a link, no dollars around TeX, no fence of a callout."
    found = []
    for page in site.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        shown = re.sub(r'(?s)<(head|script|style|pre|code|svg)\b.*?</\1>|<span class="tex.*?</span>', '', text)
        found += [f'{page.name}: {m[0]}' for m in re.finditer(r'.{0,40}(?:\]\(|\$[^$<]*\\[a-z]|:::|\*\*\w).{0,40}', re.sub('<[^>]*>', '', shown))]
    assert not found, '\n'.join(found)


def test_names_link_to_what_they_name(site):
    "A name that several pages use leads to the page's own meaning, or nowhere; what is imported, or has a name like no other, leads to its page."
    def leads(page, name): return set(re.findall(rf'<a href="([^"]*)"[^>]*><code[^>]*>{name}</code></a>', (site/page).read_text(encoding='utf-8')))
    for page in ('pairs.html', 'divergences.html', 'losses/chi_po.html'): assert not leads(page, 'score'), page  # the field, not the command
    assert leads('model/forward.html', 'score') == {'forward.html#score'} and not leads('run/job.html', 'train')
    assert leads('model/forward.html', 'PairLogps') == {'../pairs.html#pairlogps'}
    assert not leads('losses/simpo.html', 'DPOTrainer'), "TRL's"
    assert leads('explain/questions.html', 'disable_dropout') == {'../reference/copies.html#disable_dropout'}


def browser():
    "The system's Chromium; where there is none a developer's run skips, a CI run fails."
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found: return found
    (pytest.fail if os.environ.get('CI') else pytest.skip)(f'no browser: install one of {", ".join(BROWSERS)}')


def test_every_page_can_be_run_taken_away_and_left(site):
    "Colab, a copy to download, the source, the page before and after, and a picture for other sites; addresses as in settings.ini."
    cfg = settings()
    for page in PAGES:
        links, name = parsed(site/page).links, page.replace('.html', '.ipynb')
        assert {colab_url(cfg, name), source_url(cfg, f'nbs/{name}')} - {None} <= set(links), page
        copy = (site/page).parent/next(l for l in links if l.endswith('.ipynb') and ':' not in l)
        assert copy.read_text(encoding='utf-8') == fill((ROOT/'nbs'/name).read_text(encoding='utf-8'), cfg), page
        text = (site/page).read_text(encoding='utf-8')
        assert text.count('class="pagination-link"') == (2 if page != IN_ORDER[0] else 0), page
        assert 'property="og:title"' in text and 'property="og:image"' in text and 'name="twitter:card"' in text and 'rel="icon"' in text, page
        card = re.search(r'property="og:image" content="[^"]*/(cards/[^"]+)"', text)[1]
        assert card == f'cards/{page.replace(".html", ".png")}' and (site/card).stat().st_size < 30_000, page
    assert (site/'card.png').stat().st_size < 30_000


PREFIX = '/' + settings()['doc_baseurl'].strip('/')


@pytest.fixture(scope='module')
def served(site):
    "The site under its published path, with 404.html for what is not there."
    class Host(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass

        def translate_path(self, path):
            inside = path.removeprefix(PREFIX)
            return super().translate_path(inside if path.startswith(PREFIX + '/') else '/outside' + path)

        def send_error(self, code, message=None, explain=None):
            if code != 404: return super().send_error(code, message, explain)
            body = (site/'404.html').read_bytes()
            self.send_response(404)
            self.send_header('Content-Type', 'text/html; charset=utf-8')
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Host, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}{PREFIX}'
    server.shutdown()


@pytest.fixture(scope='module')
def chromium():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        running = p.chromium.launch(executable_path=browser(), args=FLAGS)
        yield running
        running.close()


@contextmanager
def tab(chromium, width=1280, scheme='light', height=900):
    "A fresh tab, of a reader who has been here never before."
    context = chromium.new_context(viewport=dict(width=width, height=height), color_scheme=scheme)
    yield context.new_page()
    context.close()


# What a page weighs as it comes: itself and all it loads, bytes.
WEIGHT = "() => [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')].reduce((n, e) => n + e.encodedBodySize, 0)"

# Elements of the text that stick out of the window and are in no box that scrolls.
CUT = """() => {
  const W = document.documentElement.clientWidth, out = document.documentElement.scrollWidth > W ? ['the whole page'] : [];
  const scrolls = e => { for (; e && e.tagName !== 'MAIN'; e = e.parentElement) if (/auto|scroll/.test(getComputedStyle(e).overflowX)) return e.getBoundingClientRect().right <= W + 1; return false; };
  for (const e of document.querySelectorAll('main *')) {
    const r = e.getBoundingClientRect();
    if (r.width && r.right > W + 1 && !scrolls(e) && !e.closest('.katex-mathml, .katex svg')) out.push(e.tagName + ': ' + e.textContent.slice(0, 60));
  }
  return out; }"""

# Formulas that KaTeX did not draw, or drew in red because it cannot read them.
UNDRAWN = """() => [...document.querySelectorAll('.tex')].filter(e => !e.querySelector('.katex-html') || !e.querySelector('math annotation') || e.querySelector('.katex-error, [mathcolor="#cc0000"]'))
  .map(e => e.textContent.slice(0, 80))"""

# Controls and pictures without a name, and text that is too faint (WCAG AA: 4.5, large text 3).
FAINT = """() => {
  const out = [], seen = new Set();
  for (const e of document.querySelectorAll('input, select, textarea')) if (!(e.labels && e.labels.length) && !e.getAttribute('aria-label')) out.push('no label: ' + e.outerHTML.slice(0, 80));
  for (const e of document.querySelectorAll('main img, main svg')) if (!e.closest('[aria-hidden=true]') && !e.getAttribute('alt') && !e.getAttribute('aria-label')) out.push('no name: ' + e.outerHTML.slice(0, 60));
  for (const e of document.querySelectorAll('a[href], button')) if (!e.textContent.trim() && !e.getAttribute('aria-label') && !e.title) out.push('no name: ' + e.outerHTML.slice(0, 80));
  const rgba = c => { const v = c.match(/[\\d.]+/g).map(Number), unit = /^color/.test(c) ? 255 : 1; return [v[0]*unit, v[1]*unit, v[2]*unit, v[3] ?? 1]; };
  const over = (a, b) => [0, 1, 2].map(i => a[i]*a[3] + b[i]*(1 - a[3]));
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4); return .2126*r + .7152*g + .0722*b; };
  const behind = e => { const up = []; for (; e; e = e.parentElement) up.push(rgba(getComputedStyle(e).backgroundColor)); return up.reverse().reduce((under, c) => over(c, under), [255, 255, 255]); };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, style = getComputedStyle(e);
    if (!walk.currentNode.data.trim() || e.closest('svg, script, style, noscript, [hidden]') || !e.checkVisibility()) continue;
    let alpha = 1; for (let x = e; x; x = x.parentElement) alpha *= getComputedStyle(x).opacity;
    const bg = behind(e), ink = rgba(style.color); ink[3] *= alpha;
    const [a, b] = [light(over(ink, bg)), light(bg)].sort((x, y) => y - x), ratio = (a + .05)/(b + .05);
    const px = parseFloat(style.fontSize), need = px >= 24 || px >= 18.66 && style.fontWeight >= 700 ? 3 : 4.5;
    const key = style.color + bg + alpha;
    if (alpha > .01 && ratio < need && !seen.has(key)) { seen.add(key); out.push(`contrast ${ratio.toFixed(2)}: ${e.tagName}.${e.className} ${walk.currentNode.data.trim().slice(0, 40)}`); }
  }
  return out; }"""


@pytest.fixture(scope='module')
def seen(chromium, served):
    "Each page opened once, by day and by night: what went wrong, what sticks out, what is hard to read."
    wrong, cut, faint, undrawn = [], [], [], []
    for scheme in ('light', 'dark'):
        with tab(chromium, scheme=scheme) as t:
            t.on('console', lambda m: m.type in ('error', 'warning') and wrong.append(f'{t.url}: {m.type} {m.text}'))
            t.on('pageerror', lambda e: wrong.append(f'{t.url}: {e}'))
            # Going on to the next page cancels what the last one was still fetching, usually the icon; that is no failure.
            t.on('requestfailed', lambda r: r.failure == 'net::ERR_ABORTED' or wrong.append(f'{t.url}: {r.url} failed: {r.failure}'))
            t.on('request', lambda r: r.url.startswith((served, 'data:', 'blob:')) or wrong.append(f'{t.url}: asks for {r.url}'))
            for page in PAGES:
                t.set_viewport_size(dict(width=1280, height=900))
                answer = t.goto(f'{served}/{page}', wait_until='load')
                if not answer.ok: wrong.append(f'{page}: status {answer.status}')
                if not t.locator('main h1').first.inner_text(): wrong.append(f'{page}: no title')
                t.wait_for_function("s => document.documentElement.classList.contains('quarto-dark') === (s === 'dark')", arg=scheme)
                faint += [f'{page} ({scheme}): {why}' for why in t.evaluate(FAINT)]
                if scheme == 'dark': continue
                undrawn += [f'{page}: {tex}' for tex in t.evaluate(UNDRAWN)]
                for width in (1280, 375):
                    t.set_viewport_size(dict(width=width, height=900))
                    cut += [f'{page} at {width}: {what}' for what in t.evaluate(CUT)]
    return dict(wrong=wrong, cut=cut, faint=faint, undrawn=undrawn)


def test_browser_shows_every_page_without_error(seen): assert not seen['wrong'], '\n'.join(seen['wrong'])


def test_every_formula_is_drawn(seen): assert not seen['undrawn'], '\n'.join(seen['undrawn'])


def test_every_page_weighs_less_than_one_and_a_half_megabytes(chromium, served):
    "As it comes to one who has been here never before: nothing is in the cache."
    heavy = []
    for page in PAGES:
        with tab(chromium) as t:
            t.goto(f'{served}/{page}', wait_until='load')
            t.evaluate('document.fonts.ready.then(() => true)')
            weight = t.evaluate(WEIGHT)
        if not 2e5 < weight < 1.5e6: heavy.append(f'{page}: {weight/1e6:.2f} MB')
    assert not heavy, '\n'.join(heavy)


def test_nothing_sticks_out_on_a_phone(seen): assert not seen['cut'], '\n'.join(seen['cut'])


def test_everything_has_a_name_and_enough_contrast(seen): assert not seen['faint'], '\n'.join(seen['faint'])


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_axe_finds_nothing(chromium, served, scheme):
    "One page of each kind, against the rules of axe-core, which axe-playwright-python carries; by night colours alone are others."
    found, axe = [], (files('axe_playwright_python')/'axe.min.js').read_text(encoding='utf-8')
    rules = "" if scheme == 'light' else ", runOnly: ['color-contrast']"
    with tab(chromium, scheme=scheme) as t:
        for page in ('index', 'tour', 'losses/ipo', 'data/collator', 'train/metrics', 'diagnose/report', 'explain/gallery', 'explain/questions', 'explain/gradient_zoo', 'explain/reading_a_run', 'views/tokens', 'views/batch', 'labs/frontier', 'names', '404'):
            t.goto(f'{served}/{page}.html')
            t.wait_for_function("s => document.documentElement.classList.contains('quarto-dark') === (s === 'dark')", arg=scheme)
            t.evaluate(axe)
            run = f"axe.run({{resultTypes: ['violations']{rules}}}).then(r => r.violations.map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 120)]))"
            found += [f'{page}: {rule}, {count} times, first {first}' for rule, count, first in t.evaluate(run)]
    assert not found, '\n'.join(found)


def test_axe_would_find_something(chromium):
    "A faint word and a field without a name are found, or the test above would prove nothing."
    with tab(chromium) as t:
        t.set_content('<main><p style="color:#bbb;background:#fff">faint</p><input type="range"></main>')
        t.evaluate((files('axe_playwright_python')/'axe.min.js').read_text(encoding='utf-8'))
        found = t.evaluate("axe.run().then(r => r.violations.map(v => v.id))")
    assert {'color-contrast', 'label'} <= set(found)


def folded(nb):
    "Of each folded callout of a notebook, the first lines of the code cells that a reader finds in it."
    found, inside = [], None
    for c in nb['cells']:
        text = ''.join(c['source'])
        if c['cell_type'] == 'code':
            said, code = directives(text)
            if inside is not None and not {'hide', 'export'} & set(said) and said.get('echo') != 'false': inside.append(code.strip().splitlines()[0])
            continue
        for line in text.splitlines():
            if line.startswith('::: {.callout'): inside = []
            elif line.strip() == ':::' and inside is not None: found, inside = [*found, inside], None
    return found


# Each callout: is it closed and shut, what code is in it, and has it swallowed what follows.
CALLOUTS = """() => [...document.querySelectorAll('main .callout')].map(c => ({
  closed: !!c.querySelector('.callout-header[aria-expanded=false][role=button][tabindex="0"]') && !c.querySelector('.callout-body').checkVisibility(),
  codes: [...c.querySelectorAll('.sourceCode')].filter(e => !e.parentElement.closest('.sourceCode')).map(e => e.textContent.trim().split('\\n')[0]),
  swallowed: c.querySelectorAll('h1, h2, .callout').length}))"""


def test_solutions_are_folded_with_their_code(chromium, served):
    "On every page each solution is closed at first, holds the code of its cells and nothing that follows, and opens and shuts by click and by key."
    off, opened = [], 0
    context = chromium.new_context(reduced_motion='reduce')
    t = context.new_page()
    for src in pages():
        nb, page = json.loads(src.read_text(encoding='utf-8')), src.relative_to(ROOT/'nbs').with_suffix('.html').as_posix()
        want = folded(nb)
        if not want: continue
        t.goto(f'{served}/{page}')
        if t.evaluate(CALLOUTS) != [dict(closed=True, codes=codes, swallowed=0) for codes in want]: off.append(f'{page}: {t.evaluate(CALLOUTS)}, written {want}')
        for header in t.locator('main .callout-header').all():
            body = header.get_attribute('data-bs-target')
            for act in (header.click, lambda: header.press('Enter')):
                act()
                t.wait_for_selector(f'{body}.collapse.show', timeout=5000)
                if not t.locator(body).inner_text().strip(): off.append(f'{page}: an empty one')
                header.press('Enter')
                t.wait_for_selector(f'{body}.collapse:not(.show)', state='attached', timeout=5000)
            opened += 1
    context.close()
    assert not off and opened > 100, '\n'.join(off)


def test_search_shows_no_tex(site):
    "Formulas in what the search shows are plain text, as `log π_θ(y|x)`; each page and each of its sections is there."
    text = (site/'site'/'index.js').read_text(encoding='utf-8')
    index = json.loads(text.removeprefix('window.siteIndex = ').rstrip(';\n'))
    shown = ' '.join(section[2] for page in index for section in page['sections'])
    assert not re.findall(r'\\(?:log|pi|beta|sigma|Delta|mathrm|theta)(?![A-Za-z])', shown) and 'log π_θ' in shown
    assert {page['url'] for page in index} == {*PAGES, 'names.html'} and all(page['title'] for page in index)
    lost = [f'{page["url"]}#{anchor}' for page in index for _, anchor, *_ in page['sections'] if anchor and anchor not in parsed(site/page['url']).ids]
    assert not lost and not any(anchor == 'toc-title' for page in index for _, anchor, *_ in page['sections']), lost


# What a reader may type, and a page that answers it. Words in any order, filler words, words the page itself does not use.
QUERIES = {
    'beta doubled first update': 'explain/beta', 'how many GB logits': 'model/memory', 'chosen reward goes down': 'explain/why_chosen_falls', 'resume after crash': 'train/checkpoints',
    'ipo': 'losses/ipo', 'squared loss target': 'losses/ipo', 'what does beta do': 'explain/beta', 'why does the loss start at 0.693': 'tour', 'wrong labels': 'labs/noisy_labels',
    'noisy labels robust loss': 'losses/robust', 'which loss should I use': 'labs/choose_a_loss', 'lora adapter': 'guides/lora', 'train on several GPUs': 'guides/scaling',
    'image pairs vision model': 'guides/vision', 'tool calls': 'guides/tools', 'length bias long answers': 'explain/length_bias', 'truncate prompt keep eos': 'data/truncate',
    'chat template formats': 'data/formats', 'padding collator': 'data/collator', 'precompute reference log probs': 'reference/precompute', 'share prompt prefix': 'model/prefix_sharing',
    'activation offloading': 'train/offloading', 'mixture of experts aux loss': 'train/experts', 'partition function Z cancels': 'explain/from_rlhf', 'bradley terry rlhf': 'explain/from_rlhf',
    'orpo no reference': 'losses/orpo', 'five mistakes log probs': 'logps', 'score held-out pairs with a trained model': 'diagnose/scoring', 'command line train': 'run/cli', 'sync the reference now and then': 'reference/sync',
    'doctor checks before a run': 'diagnose/doctor', 'f-divergence': 'divergences',
}


def test_thirty_queries_find_their_page_among_the_first_three(chromium, served):
    missed = []
    with tab(chromium) as t:
        t.goto(f'{served}/tour.html')
        field = t.locator('.site-search input')
        for query, page in QUERIES.items():
            field.fill(query)
            t.wait_for_selector(f'.site-search [data-query="{query}"]')
            hrefs = t.locator('.search-result').evaluate_all('all => all.map(a => a.href)')
            found = list(dict.fromkeys(h.removeprefix(f'{served}/').partition('.html')[0] for h in hrefs))[:3]
            if page not in found: missed.append(f'{query}: {found}, not {page}')
    assert len(QUERIES) >= 30 and not missed, '\n'.join(missed)


def test_search_is_used_with_the_keys(chromium, served):
    "/ goes to the field, arrows choose, Enter opens at the place; words in another order find the same; nonsense says so; Escape leaves."
    with tab(chromium) as t:
        t.goto(f'{served}/losses/ipo.html')
        first = {}
        for query in ('reference sync', 'sync the reference'):
            t.keyboard.press('/')
            t.locator('.site-search input').fill(query)
            t.wait_for_selector(f'.site-search [data-query="{query}"] .search-result')
            first[query] = t.locator('.search-result').first.get_attribute('href')
            t.keyboard.press('Escape')
            assert not t.locator('.site-search [role=listbox]').is_visible()
        assert len(set(first.values())) == 1
        t.keyboard.press('/')
        t.locator('.site-search input').fill('xqzzy')
        t.wait_for_selector('.site-search .none')
        t.locator('.site-search input').fill('classic mistakes')
        t.wait_for_selector('.site-search [data-query="classic mistakes"] .search-result')
        t.keyboard.press('ArrowDown')
        assert t.locator('[aria-selected=true]').count() == 1 and t.locator('[aria-selected=true]').get_attribute('id') == 'search-1'
        t.keyboard.press('ArrowUp')
        target = t.locator('#search-0').evaluate('a => a.href')
        t.keyboard.press('Enter')
        t.wait_for_url(target)
        assert t.evaluate("location.hash.length > 1 && document.querySelector(`[id='${location.hash.slice(1)}']`) !== null")


def test_search_works_on_files(chromium, site):
    "The site opened from disk, where pages may not fetch: from a page in a folder, to a page in another."
    with tab(chromium) as t:
        t.goto(f'{site.as_uri()}/losses/ipo.html')
        t.keyboard.press('/')
        t.keyboard.type('collator')
        t.wait_for_selector('.search-result')
        t.locator('.search-result[href*="data/collator.html"]').first.click()
        t.wait_for_load_state()
        assert t.url.startswith('file:') and t.locator('main h1').first.is_visible() and 'collator' in t.url


def bottom(t, css): return t.locator(css).first.evaluate('e => e.getBoundingClientRect().bottom + scrollY')


@pytest.mark.parametrize('width,height,screens', [(1280, 800, 1), (390, 844, 1.5)])
def test_the_story_is_on_the_first_screen(chromium, served, width, height, screens):
    "What DPO is, two buttons, how to install, and the whole of the recorded run with its controls."
    with tab(chromium, width=width, height=height) as t:
        t.goto(f'{served}/index.html')
        for css in ('main h1', '.description', '.hero-words .button.first', '.hero-words .button:not(.first)', '.hero-words pre', '.story .chosen', '.story .rejected', '.story svg', '.story .go', '.story #story-step', '.story .switches'):
            assert t.locator(css).first.is_visible() and bottom(t, css) <= screens*height, f'{css} ends at {bottom(t, css):.0f}'
        assert t.locator('.story').evaluate('e => e.getBoundingClientRect().right') <= width
        if width == 1280: assert t.locator('.door').first.evaluate('e => e.getBoundingClientRect().top') < height, 'the doors begin below the first screen'


def test_the_story_plays_what_was_recorded(chromium, served):
    "With the keys alone: play, pause, steps, β, wrong labels; each frame shows the numbers of the recording and says them."
    story = json.loads((ROOT/'nbs'/'site'/'story.json').read_text(encoding='utf-8'))
    with quiet_tab(chromium, f'{served}/index.html', width=390) as t:
        figure, slider = t.locator('#story'), t.locator('#story-step')
        assert slider.input_value() == slider.get_attribute('max'), 'it begins at the end, as it is without scripts'
        t.locator('.story .go').focus()
        t.keyboard.press('Enter')
        t.wait_for_function("document.getElementById('story-step').value === '3'")
        t.keyboard.press('Space')
        assert 'Train' in t.locator('.story .go').inner_text()
        paused = slider.input_value()
        t.wait_for_timeout(500)
        assert slider.input_value() == paused != slider.get_attribute('max')
        slider.focus()
        t.keyboard.press('Home')
        assert 'ln 2 = 0.693' in figure.locator('.words').inner_text() and slider.get_attribute('aria-valuetext') == 'step 0, loss 0.69'
        seen = set()
        for run_ in story['runs']:
            t.locator(f'[name=story-beta][value="{run_["beta"]:g}"]').check(force=True)
            t.locator('#story-wrong').set_checked(run_['wrong'] > 0)
            for k in (0, 10, 20):
                slider.fill(str(k))
                frame = run_['frames'][k]
                assert figure.locator('.says').inner_text() == frame['says'] and figure.locator('.now').inner_text() == f'step {frame["step"]}'
                assert slider.get_attribute('aria-valuetext') == f'step {frame["step"]}, loss {frame["loss"]:.2f}'
                if k: assert f'{int(100*frame["right"] + .5)} % of 96' in figure.locator('.words').inner_text()
                for side in ('chosen', 'rejected'):
                    shown = figure.locator(f'.{side} .tok').evaluate_all('all => all.map(e => [e.textContent, e.title])')
                    want = [(w, r) for w, r in zip(story['tokens'][side], frame[side]) if w.strip() and not w.startswith('<|')]
                    assert [w for w, _ in shown] == [w for w, _ in want]
                    assert [numbers(title)[0] for _, title in shown] == pytest.approx([r for _, r in want], abs=.0051)
            seen.add(figure.locator('.words').inner_text())
        assert len(seen) == len(story['runs']) == 6
    assert (ROOT/'nbs'/'site'/'story.json').stat().st_size < 50_000


def test_the_story_is_whole_without_scripts(chromium, site):
    context = chromium.new_context(java_script_enabled=False)
    t = context.new_page()
    t.goto(f'{site.as_uri()}/index.html')
    assert t.locator('.story .tok').count() > 10 and 'After 60 steps' in t.locator('.story .words').inner_text()
    assert t.locator('.story svg polyline').first.is_visible() and not t.locator('.story .go').is_visible()
    context.close()


def test_the_page_says_where_it_stands(chromium, served):
    "Five groups, of which the one of the page is open; its entry is marked and in view; group, place and minutes above the title."
    with tab(chromium, height=800) as t:
        for page in ('tour', 'losses/chi_po', 'api', 'diagnose/doctor', 'views/batch'):
            t.goto(f'{served}/{page}.html')
            group = next(g for g, names in GROUPS.items() if f'{page}.ipynb' in names)
            place = GROUPS[group].index(f'{page}.ipynb') + 1
            assert re.fullmatch(rf'{group} · {place} of {len(GROUPS[group])} · \d+ min', t.locator('.kicker').inner_text()), page
            open_ = t.locator('.sidebar-item-section:has(.sidebar-section.show) > .sidebar-item-container').all_inner_texts()
            assert [o.strip() for o in open_] == [group] and t.locator('.sidebar-item-section').count() == 5, page
            here = t.locator('.sidebar-link.active')
            box = here.bounding_box()
            assert here.get_attribute('aria-current') == 'page' and 55 <= box['y'] and box['y'] + box['height'] <= 800, f'{page}: {box}'
            assert t.evaluate('scrollY') == 0


def test_set_up_and_checks_are_folded(chromium, served):
    "Imports, figures' code and checks are closed, what is exported is open; one switch opens all, on this page and the next."
    with tab(chromium) as t:
        t.goto(f'{served}/losses/ipo.html')
        closed = t.locator('main details.code-fold:not([open]) > summary').all_inner_texts()
        assert closed[0] == 'Imports' and 'Code of the figure' in closed and any(re.fullmatch(r'\d+ checks', c) for c in closed)
        assert t.locator('main details.code-fold[open] code', has_text='def ipo_loss').is_visible()
        assert t.locator('main section h2').first.inner_text() == 'The problem', 'the table At a glance comes later'
        switch = t.locator('.open-code')
        switch.focus()
        t.keyboard.press('Enter')
        assert t.locator('main details.code-fold:not([open])').count() == 0 and switch.get_attribute('aria-pressed') == 'true'
        t.goto(f'{served}/losses/hinge.html')
        assert t.locator('main details.code-fold:not([open])').count() == 0
        t.locator('.open-code').click()
        assert t.locator('main details.code-fold:not([open])').count() > 5


SCREENS = dict(tour=6, names=7, index=14)  # of 1280 by 800, with everything folded


def test_short_pages_stay_short(chromium, served):
    with tab(chromium, height=800) as t:
        for page, most in SCREENS.items():
            t.goto(f'{served}/{page}.html')
            t.wait_for_timeout(200)
            screens = t.evaluate('document.documentElement.scrollHeight')/800
            assert screens <= most, f'{page}: {screens:.1f} screens'


# Lines of code and output that one cannot read to their end: cut at 1280 pixels.
CLIPPED = """() => [...document.querySelectorAll('main pre')].filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.trim().slice(0, 60))"""


def test_no_code_is_cut_at_1280(chromium, served):
    cut = []
    with tab(chromium) as t:
        for page in [*PAGES, 'names.html']:
            t.goto(f'{served}/{page}')
            t.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            cut += [f'{page}: {line}' for line in t.evaluate(CLIPPED)]
    assert not cut, '\n'.join(cut)


def test_long_lines_scroll_on_a_phone_and_say_so(chromium, served):
    with tab(chromium, width=390) as t:
        t.goto(f'{served}/losses/ipo.html')
        wide = t.locator('main pre').evaluate_all("all => all.filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1).map(e => [getComputedStyle(e).overflowX, getComputedStyle(e).backgroundImage.includes('gradient'), e.tabIndex])")
        assert wide and all(w == ['auto', True, 0] for w in wide), wide


def test_prose_has_a_measure_one_can_read(chromium, served):
    "65 to 75 characters a line on a wide screen."
    with tab(chromium, width=1440) as t:
        t.goto(f'{served}/tour.html')
        widths = t.evaluate("""() => { const p = document.querySelector('main section > p'), c = document.createElement('canvas').getContext('2d'), s = getComputedStyle(p);
            c.font = `${s.fontSize} ${s.fontFamily}`;
            return p.getBoundingClientRect().width/(c.measureText(p.textContent).width/p.textContent.length); }""")
        assert 65 <= widths <= 80, widths


def test_fonts_are_the_sites_own_and_light(site):
    fonts = list((site/'site'/'fonts').glob('*.woff2'))
    assert len(fonts) >= 4 and sum(f.stat().st_size for f in fonts) < 150_000
    licence = (site/'site'/'fonts'/'LICENSE').read_text(encoding='utf-8')
    assert all(name in licence for name in ('Source Serif', 'Inter', 'JetBrains Mono', 'SIL Open Font License'))


def test_every_public_name_is_on_its_page(site):
    "The page of names has each name of each module's `__all__` that is a function or class, with its signature and a link that leads to it."
    from web import api
    from project import modidx
    text, links = (site/'names.html').read_text(encoding='utf-8'), set(parsed(site/'names.html').links)
    index, listed = modidx()['syms'], 0
    for module in index:
        for name, shown, said in api.public(module):
            if f'{module}.{name}' not in index[module]: continue
            listed += 1
            assert shown.startswith(name) and any(l.startswith(index[module][f'{module}.{name}'][0].partition('#')[0]) for l in links), f'{module}.{name}'
    assert listed > 300 and text.count('class="name"') == listed


def test_numbers_in_words_are_true():
    "Twenty-five questions, thirty lines, and the minutes that the first page promises."
    from execnb.nbio import read_nb
    from web.order import minutes
    read = lambda name: read_nb(ROOT/'nbs'/name)
    questions = [q for c in read('explain/questions.ipynb').cells if c.cell_type == 'markdown' for q in re.findall(r'(?m)^### \d+\. ', c.source)]
    assert len(questions) == 25
    core = {'batch_of', 'logps', 'dpo_loss'}
    lines = 0
    for c in read('tour.ipynb').cells:
        named = set(re.findall(r'(?m)^def (\w+)', c.source)) & core
        if c.cell_type != 'code' or not (named or 'optimizer.step()' in c.source): continue
        lines += sum(bool(l.strip()) and not l.lstrip().startswith(('print', 'assert', 'test_', '"', '#')) for l in c.source.splitlines())
    assert 27 <= lines <= 33, lines
    evening = sum(minutes(read(name).cells) for name in ('tour.ipynb', 'pairs.ipynb', 'explain/from_rlhf.ipynb', 'losses/sigmoid.ipynb', 'explain/why_chosen_falls.ipynb', 'explain/beta.ipynb', 'explain/length_bias.ipynb'))
    assert minutes(read('tour.ipynb').cells) <= 12 and 75 <= evening <= 120, evening


def test_print_leaves_out_what_paper_cannot_do(chromium, served):
    with tab(chromium) as t:
        t.goto(f'{served}/losses/sigmoid.html')
        t.emulate_media(media='print')
        for css in ('#quarto-header', '#quarto-sidebar', '#quarto-margin-sidebar', '.page-links', 'main details.code-fold:not([open])'):
            assert not t.locator(css).first.is_visible(), css
        assert t.locator('main h1').is_visible() and t.locator('main pre', has_text='def sigmoid_loss').first.is_visible()


def test_dark_mode_is_remembered(chromium, served):
    with tab(chromium) as t:
        paper = lambda: sum(map(int, re.findall(r'\d+', t.evaluate('getComputedStyle(document.body).backgroundColor'))[:3]))
        t.goto(f'{served}/index.html')
        assert paper() > 600
        t.locator('.quarto-color-scheme-toggle:visible').click()
        t.wait_for_selector('html.quarto-dark')
        t.goto(f'{served}/losses/ipo.html')
        t.wait_for_selector('html.quarto-dark')
        assert paper() < 200


def test_unknown_address_leads_back(chromium, served):
    with tab(chromium) as t:
        answer = t.goto(f'{served}/some/where/else.html')
        assert answer.status == 404 and t.locator('main h1').inner_text() == 'Nothing here'
        t.locator('main a', has_text='the start').click()
        t.wait_for_load_state()
        assert t.url == f'{served}/index.html'


@pytest.mark.parametrize('width', [1280, 375])
def test_formulas_are_mathematics(chromium, site, width):
    "From disk: a fraction is higher than its numerator, a symbol as large as the text, a full stop stays with its formula, and what is too wide scrolls, with the keyboard too."
    with tab(chromium, width=width) as t:
        t.goto(f'{site.as_uri()}/losses/sigmoid.html')
        height = lambda css: t.locator(css).first.evaluate('e => e.getBoundingClientRect().height')
        assert height('.katex-display .mfrac .vlist-t') > 1.5*height('.katex-display .mfrac .mord') > 0
        assert t.evaluate("document.fonts.check('16px KaTeX_Math')") and any('\\sigma' in text for text in t.locator('.katex-mathml annotation').all_text_contents())
        text, symbol = (t.locator(css).first.evaluate('e => parseFloat(getComputedStyle(e).fontSize)') for css in ('p:has(> .formula)', 'p > .formula .katex'))
        assert 1 <= symbol/text < 1.15
        lines = t.evaluate("""() => [...document.querySelectorAll('main p > .formula > .after')].filter(e => e.checkVisibility()).map(e => {
            const last = [...e.parentNode.querySelectorAll('.base')].at(-1).getBoundingClientRect(), dot = e.getBoundingClientRect();
            return Math.abs(dot.left - last.right) < 3 && dot.top < last.bottom; })""")
        assert len(lines) > 5 and all(lines)
        wide = t.locator('.katex-display').evaluate_all('all => all.map(e => [e.scrollWidth > e.clientWidth + 1, e.tabIndex === 0])')
        assert all(scrolls == stop for scrolls, stop in wide) and any(scrolls for scrolls, _ in wide) == (width == 375)


def test_formulas_can_be_read_without_scripts(chromium, site):
    context = chromium.new_context(java_script_enabled=False)
    t = context.new_page()
    t.goto(f'{site.as_uri()}/losses/sigmoid.html')
    shown = t.locator('main .tex.display').first.inner_text()
    context.close()
    assert r'\mathcal L(\theta)' in shown and r'\frac{\pi_\theta(y_w\mid x)}' in shown


def explorables(site):
    "Pages with a slider."
    return [p for p in PAGES if re.search(r'<input [^>]*type="range"', (site/p).read_text(encoding='utf-8'))]


def test_every_slider_moves_its_figure(chromium, served, site):
    "On a phone, with the keyboard: a step changes what the figure shows; the slider has a label and fits the screen."
    assert {'index.html', 'losses/sigmoid.html'} <= set(explorables(site)) and len(explorables(site)) > 20
    with tab(chromium, width=375) as t:
        for page in explorables(site):
            t.goto(f'{served}/{page}')
            for slider in t.locator('main input[type=range]').all():
                box, name = slider.bounding_box(), f'{page}: {slider.get_attribute("id")}'
                assert slider.evaluate('e => e.labels.length'), f'{name} has no label'
                assert box['x'] >= 0 and box['x'] + box['width'] <= 375, f'{name} does not fit'
                state = "e => e.closest('figure').innerHTML"
                before, value = slider.evaluate(state), float(slider.input_value())
                slider.focus()
                t.keyboard.press('ArrowLeft' if value == float(slider.get_attribute('max')) else 'ArrowRight')
                assert float(slider.input_value()) != value and slider.evaluate(state) != before, f'{name} moves nothing'


def test_explorers_show_the_numbers_they_hold(chromium, served, site):
    "Both sliders to both ends and the middle: setting, point, numbers and curve are those of the figure's own table."
    figures, off = 0, []
    with tab(chromium) as t:
        for page in explorables(site):
            t.goto(f'{served}/{page}')
            for figure in t.locator('figure:has(input.i)').all():
                figures += 1
                held = json.loads(figure.locator('script[type="application/json"]').text_content())
                n, settings_ = len(held['x']), len(held['settings'])
                lines = set()
                for k in sorted({0, settings_//2, settings_-1}):
                    if figure.locator('input.s').count(): figure.locator('input.s').fill(str(k))
                    lines.add(tuple(figure.locator('polyline').evaluate_all('all => all.map(e => e.getAttribute("points"))')))
                    for i in sorted({0, n//2, n-1}):
                        figure.locator('input.i').fill(str(i))
                        want = [held['x'][i], *(panel[k][i] for panel in held['y'])]
                        got = [None if v == '–' else float(v) for v in figure.locator('td').all_inner_texts()]
                        same = [a is b or None not in (a, b) and math.isclose(a, b, rel_tol=.006, abs_tol=1e-12) for a, b in zip(got, want)]
                        shown = figure.locator('.so').inner_text() if figure.locator('.so').count() else held['settings'][0]
                        if len(got) != len(want) or not all(same) or shown != held['settings'][k]: off.append(f'{page}: setting {k}, point {i}: {shown} {got}, held {held["settings"][k]} {want}')
                if len(lines) < min(settings_, 2): off.append(f'{page}: the curve does not change with the setting')
    assert figures > 20 and not off, '\n'.join(off)


@contextmanager
def quiet_tab(chromium, url, width=375):
    "A phone's tab in which nothing may go wrong while a figure is played with."
    wrong = []
    with tab(chromium, width=width) as t:
        t.on('console', lambda m: m.type in ('error', 'warning') and wrong.append(m.text))
        t.on('pageerror', lambda e: wrong.append(str(e)))
        t.goto(url)
        yield t
        assert not t.evaluate(CUT), 'sticks out after use'
    assert not wrong, wrong


def held_by(figure): return json.loads(figure.locator('script[type="application/json"]').text_content())


def numbers(text): return [float(n.replace('−', '-')) for n in re.findall(r'[+−]?\d+(?:\.\d+)?(?:e-?\d+)?', text)]


def test_token_view_shows_the_numbers_it_holds(chromium, served):
    "Every checkpoint of every pair: sums, words, colours; a token says its number, by pointer and by key."
    with quiet_tab(chromium, f'{served}/views/tokens.html') as t:
        figure = t.locator('figure.dpo-tokens')
        held, slider = held_by(figure), figure.locator('input')
        for p, pair in enumerate(held['pairs']):
            figure.locator('select').select_option(str(p))
            assert int(slider.input_value()) == len(pair['steps']) - 1, 'a pair begins at its last checkpoint'
            for k, step in enumerate(pair['steps']):
                slider.fill(str(k))
                assert numbers(figure.locator('.sums').inner_text()) == pytest.approx([step, *pair['sums'][k]])
                assert figure.locator('p output').inner_text() == str(step)
                for side in ('chosen', 'rejected'):
                    shown = figure.locator(f'.{side} span').evaluate_all('all => all.map(e => [e.textContent, e.className, e.dataset.r])')
                    assert [w for w, *_ in shown] == [w.lstrip(' ') or w for w in pair[side]]
                    assert [numbers(r)[0] for *_, r in shown] == pair['r'][k][side]
                    for (_, css, _), r in zip(shown, pair['r'][k][side]):
                        shade = int(8*min(1, abs(r)/held['limit']) + .5)
                        assert css == ' '.join(['t', *([('p' if r > 0 else 'n') + str(shade)] if shade else [])])
        words = figure.locator('.rejected span')
        words.nth(3).hover()
        assert figure.locator('.say').inner_text().startswith('rejected token 4 of')
        words.first.focus()
        t.keyboard.press('End')
        last = held['pairs'][-1]
        assert numbers(figure.locator('.say').inner_text())[-1] == last['r'][-1]['rejected'][-1]
        assert [e.evaluate('e => e.tabIndex') for e in (words.first, words.last)] == [-1, 0], 'an answer is one stop of the Tab key'


def test_batch_view_shows_what_the_collator_made(chromium, served):
    with quiet_tab(chromium, f'{served}/views/batch.html') as t:
        figure = t.locator('figure.dpo-batch')
        held, written = held_by(figure), dict(ids='ids', attention='attention', completion='completion', position='position')
        for k, setting in enumerate(held['settings']):
            figure.locator('input').fill(str(k))
            for layout in ('padded', 'packed'):
                figure.locator('.lay').select_option(layout)
                assert figure.locator('.said').inner_text() == setting['said'][layout]
                for what, key in written.items():
                    figure.locator('.what').select_option(what)
                    cells = figure.locator('.box tr').evaluate_all('all => all.map(r => [...r.querySelectorAll("td")].map(e => e.textContent.trim()))')
                    assert cells == [['' if v is None else str(v).strip() for v in row[key]] for row in setting[layout]], (setting['name'], layout, what)
        figure.locator('.what').select_option('text')
        words = [held['words'][str(i)] for i in held['settings'][-1]['packed'][0]['ids']]
        assert figure.locator('.box tr').first.locator('td').evaluate_all('all => all.map(e => e.textContent)') == words


def test_run_view_has_one_cursor(chromium, served):
    "The slider, and a pointer in any panel, move the cursor of all panels; each run says its logged numbers."
    with quiet_tab(chromium, f'{served}/explain/reading_a_run.html') as t:
        figure = t.locator('figure.dpo-runs')
        held, slider = held_by(figure), figure.locator('input')
        for i in (0, 7, len(held['steps']) - 1):
            slider.fill(str(i))
            for q, run in enumerate(held['runs']):
                c = run['curves']['held-out']
                got = numbers(figure.locator(f'[data-run="{q}"] .now').inner_text())
                want = [c['steps'][i], c['loss'][i], c['accuracy'][i], c['chosen'][i] - c['rejected'][i], c['chosen'][i], c['rejected'][i]]
                assert got == pytest.approx(want, rel=.01, abs=6e-4)
        cursors = lambda: set(figure.locator('.cursor').evaluate_all('all => all.map(e => e.getAttribute("x1"))'))
        before = cursors()
        panel = figure.locator('svg').nth(1)
        panel.scroll_into_view_if_needed()
        panel.hover()
        assert len(cursors()) == len(before) == 1 and cursors() != before and int(slider.input_value()) not in (0, len(held['steps']) - 1)


def test_brush_says_who_is_pushed(chromium, served):
    "Sliders and a drag mark a stretch; the table holds the mean of every curve there."
    for page in ('views/brush', 'explain/gradient_zoo'):
        with quiet_tab(chromium, f'{served}/{page}.html') as t:
            figure = t.locator('figure.dpo-brush')
            held = held_by(figure)

            def check():
                i, j = sorted(int(figure.locator(f'.{c}').input_value()) for c in ('from', 'to'))
                rows = figure.locator('tbody tr').evaluate_all('all => all.map(r => [r.children[1].textContent, r.children[2].textContent])')
                for y, (mean, word) in zip(held['y'], rows, strict=True):
                    want = sum(y[i:j+1])/(j - i + 1)
                    assert numbers(mean)[0] == pytest.approx(want, rel=.006, abs=6e-4)
                    assert word == held['words'][0 if want > held['still'] else 2 if want < -held['still'] else 1] or abs(abs(want) - held['still']) < 1e-3
                return i, j

            check()
            for i, j in ((0, 30), (100, 60), (120, 120)):
                figure.locator('.from').fill(str(i))
                figure.locator('.to').fill(str(j))
                assert check() == tuple(sorted((i, j)))
            svg = figure.locator('svg[role=img]')
            svg.scroll_into_view_if_needed()
            box = svg.bounding_box()
            t.mouse.move(box['x'] + .4*box['width'], box['y'] + .5*box['height'])
            t.mouse.down()
            t.mouse.move(box['x'] + .8*box['width'], box['y'] + .5*box['height'])
            t.mouse.up()
            i, j = check()
            assert j - i > 40


def test_trails_stay_under_the_frontier(chromium, served):
    with quiet_tab(chromium, f'{served}/labs/frontier.html') as t:
        figure = t.locator('figure.dpo-trails')
        held = held_by(figure)
        assert all(s is None or s <= 1.0005 for path in held['share'] for s in path)
        for k, name in enumerate(held['names'][:4]):
            figure.locator('select').select_option(str(k))
            for j in (0, 5, len(held['steps']) - 1):
                figure.locator('input').fill(str(j))
                said, (a, b), share = figure.locator('.said').inner_text(), held['paths'][k][j], held['share'][k][j]
                assert said.startswith(f'{name}, step {held["steps"][j]}: ')
                got = numbers(said.removeprefix(f'{name}, step {held["steps"][j]}:'))
                assert got == pytest.approx([a, b] + ([] if share is None else [round(100*share)]), rel=.006, abs=1.01 if share else 6e-4)
        svg = figure.locator('svg')
        svg.scroll_into_view_if_needed()
        svg.click()
        c = figure.locator('circle')
        box, dot = svg.bounding_box(), c.bounding_box()
        assert math.hypot(dot['x'] - box['x'] - box['width']/2, dot['y'] - box['y'] - box['height']/2) < .4*box['width']


@pytest.mark.parametrize('page', ['losses/hinge', 'losses/sigmoid', 'explain/beta'])
def test_a_pair_can_be_dragged_along_the_curve(chromium, served, page):
    with quiet_tab(chromium, f'{served}/{page}.html') as t:
        figure = t.locator('figure:has(input[type=range])').first
        slider, svg = figure.locator('input[type=range]').last, figure.locator('svg').first
        svg.scroll_into_view_if_needed()
        box, seen = svg.bounding_box(), []
        t.mouse.move(box['x'] + .3*box['width'], box['y'] + .5*box['height'])
        t.mouse.down()
        for share in (.3, .6, .9):
            t.mouse.move(box['x'] + share*box['width'], box['y'] + .5*box['height'])
            seen.append((int(slider.input_value()), svg.locator('circle').get_attribute('cx'), tuple(figure.locator('td').all_inner_texts())))
        t.mouse.up()
        t.mouse.move(box['x'] + .4*box['width'], box['y'] + .5*box['height'])
        assert seen == sorted(seen, key=lambda s: s[0]) and len({s[0] for s in seen}) == len({s[2] for s in seen}) == 3
        assert int(slider.input_value()) == seen[-1][0], 'moves without being held'


def test_text_from_data_stays_text_in_every_view(chromium):
    "HTML in tokens, prompts, names and titles is shown, never run."
    from dpo_nb.views.batch import batch_view
    from dpo_nb.data.collator import DataCollatorForPreference
    from dpo_nb.views.run import run_view
    from dpo_nb.views.tokens import token_view
    evil = '</script><script>document.title="run"</script><img src=x onerror=document.title="run"><b>'
    words = type('Words', (), {'decode': lambda self, ids: evil})()
    steps = [dict(step=k, chosen=[.1*k], rejected=[-.1*k]) for k in range(3)]
    log = [{'step': s, 'loss': .7, 'rewards/chosen': 0., 'rewards/rejected': 0., 'rewards/accuracies': 0.} for s in range(3)]
    pair = dict(prompt_ids=[1], chosen_ids=[2], rejected_ids=[3])
    parts = [token_view([dict(prompt=[evil], chosen=[evil], rejected=[evil], steps=steps)]*2, title=evil).html(),
             batch_view({evil: DataCollatorForPreference(0)([pair]), 'short': DataCollatorForPreference(0, 1)([pair])}, words, title=evil).html(),
             run_view({evil: log}, notes={evil: [(1, evil)]}, title=evil).html()]
    with tab(chromium, width=375) as t:
        t.set_content('<!doctype html><html lang="en"><title>safe</title><body>' + ''.join(parts + parts))
        for control in t.locator('input').all():
            control.focus()
            t.keyboard.press('ArrowLeft')
            t.keyboard.press('ArrowRight')
        for menu in t.locator('select').all(): menu.select_option(index=1)
        for word in t.locator('.dpo-tokens span').all(): word.hover()
        assert t.title() == 'safe' and t.locator('img, b b').count() == 0 and t.locator('figure').count() == 6
        assert t.locator('.dpo-tokens .chosen span').first.text_content() == evil
