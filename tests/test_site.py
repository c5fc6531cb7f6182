"The site: it builds, no link is broken, and a browser shows it without an error and without asking another host."
import os, re, shutil, sys
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlparse

import pytest
from conftest import copy_checkout, run
from project import ROOT, pages, unnumbered

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync']
PAGES = [unnumbered(p.relative_to(ROOT/'nbs').with_suffix('.html').as_posix()) for p in pages()]

pytestmark = pytest.mark.skipif(not shutil.which('quarto') and sys.version_info < (3, 11), reason='smalldocs needs Python 3.11')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site, built from a copy of the checkout; the build exits with an error if the renderer warns of anything."
    checkout = copy_checkout(tmp_path_factory.mktemp('site')/'checkout')
    run(sys.executable, 'scripts/docs.py', cwd=checkout)
    return checkout/'_docs'


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
    assert {p.relative_to(site).as_posix() for p in site.rglob('*.html')} == set(PAGES)


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


@pytest.mark.skipif(shutil.which('quarto') is not None, reason='how smalldocs shows formulas; quarto has its own way')
def test_formulas_are_shown_as_formulas(site):
    "Each formula is MathML in the page; no TeX command is left in what a reader sees."
    found = []
    for page in site.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        if 'class="math' in text: found.append(f'{page.name}: a formula was not converted')
        for formula in re.findall(r'(?s)<math .*?</math>', text):
            shown = re.sub(r'<[^>]*>', ' ', formula)
            tex = re.search(r'alttext="([^"]*)"', formula)[1]
            if '\\' in shown or '&amp;' in shown: found.append(f'{page.name}: {tex}')
    assert not found, '\n'.join(found)


def browser():
    "The system's Chromium; where there is none a developer's run skips, a CI run fails."
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found: return found
    (pytest.fail if os.environ.get('CI') else pytest.skip)(f'no browser: install one of {", ".join(BROWSERS)}')


@pytest.fixture(scope='module')
def served(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def test_browser_shows_every_page_without_error(site, served):
    from playwright.sync_api import sync_playwright
    found = []
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=browser(), args=FLAGS)
        tab = chromium.new_page()
        tab.on('console', lambda m: m.type in ('error', 'warning') and found.append(f'{tab.url}: {m.type} {m.text}'))
        tab.on('pageerror', lambda e: found.append(f'{tab.url}: {e}'))
        # Going on to the next page cancels what the last one was still fetching, usually the icon; that is no failure.
        tab.on('requestfailed', lambda r: r.failure == 'net::ERR_ABORTED' or found.append(f'{tab.url}: {r.url} failed: {r.failure}'))
        tab.on('request', lambda r: r.url.startswith((served, 'data:', 'blob:')) or found.append(f'{tab.url}: asks for {r.url}'))
        for page in PAGES:
            answer = tab.goto(f'{served}/{page}', wait_until='load')
            if not answer.ok: found.append(f'{page}: status {answer.status}')
            if not tab.locator('main h1').first.inner_text(): found.append(f'{page}: no title')
        chromium.close()
    assert not found, '\n'.join(found)
