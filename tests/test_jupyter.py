"Explorables in a notebook: two copies on one page, arrow keys that JupyterLab wants, a notebook that is not trusted, and widgets in a real kernel."
import html, json, os, re, shutil

import pytest

from project import ROOT, pages
from test_live import Reader

FIGURES = [(p.name, text) for p in map(ROOT.joinpath, pages()) for c in json.loads(p.read_text(encoding='utf-8'))['cells'] for o in c.get('outputs', ())
           if '<input' in (text := ''.join(o.get('data', {}).get('text/html', ''))) and '<script' in text]

# JupyterLab's own shortcuts: it hears a key before the page does, and takes the arrows for its cells unless the element says no.
LAB = '''<script>addEventListener("keydown", e => { if (/^Arrow|Home|End/.test(e.key) && !e.target.hasAttribute("data-lm-suppress-shortcuts"))
{ e.preventDefault(); e.stopPropagation() } }, true)</script>'''


@pytest.fixture(scope='module')
def chromium():
    found = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not found: (pytest.fail if os.environ.get('CI') == 'true' else pytest.skip)('no browser: install chromium')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        running = p.chromium.launch(executable_path=found, args=['--no-sandbox', '--disable-gpu', '--disable-quic'])
        yield running
        running.close()


def test_two_copies_on_one_page_keep_their_sliders_and_their_keys_apart(chromium):
    assert len(FIGURES) > 25
    tab, wrong = chromium.new_page(), []
    tab.on('pageerror', lambda e: wrong.append(str(e)))
    for name, figure in FIGURES:
        tab.set_content(f'<!doctype html>{LAB}{figure}{figure}')
        copies = tab.locator('figure').all()
        state = [lambda e=e: e.evaluate('e => e.innerHTML + [...e.querySelectorAll("input, select")].map(i => i.value)') for e in copies]
        assert len(copies) % 2 == 0, name
        for i, copy in enumerate(copies):
            for slider in copy.locator('input[type=range]').all():
                slider.focus()
                before = [s() for s in state]
                tab.keyboard.press('ArrowLeft' if slider.input_value() == slider.get_attribute('max') else 'ArrowRight')
                moved = [k for k, s in enumerate(state) if s() != before[k]]
                assert moved == [i], f'{name}: a key on a slider of figure {i} moves the figures {moved}'
    tab.close()
    assert not wrong, wrong


def test_an_untrusted_notebook_shows_no_words_of_a_drawing_that_is_gone(chromium):
    "JupyterLab takes scripts, styles and the tags of SVG out, and leaves the text that was in them."
    tab = chromium.new_page(java_script_enabled=False)
    for name, figure in FIGURES:
        axes = [html.unescape(''.join(re.findall(r'<text[^>]*>(.*?)</text>', svg))) for svg in re.findall(r'<svg.*?</svg>', figure, re.S)]
        left = re.sub(r'<(script|style)\b.*?</\1>', '', figure, flags=re.S)
        left = re.sub(r'</?(svg|path|text|line|polyline|polygon|circle|rect|noscript)\b[^>]*>', '', left)
        tab.set_content(f'<!doctype html>{left}')
        shown = tab.locator('body').inner_text()
        assert not [a for a in axes if a and a in shown], f'{name}: {shown}'
        assert 'run its cell' in shown, name
    tab.close()


def test_the_loss_explorer_says_in_a_browser_what_it_says_in_python(chromium):
    import torch
    from dpo_nb.views.explorer import LossExplorer
    softplus = torch.nn.functional.softplus
    curves = dict(log=lambda x, b, t: (softplus(-b*x), b*(-b*x).sigmoid()), square=lambda x, b, t: ((x-t/b)**2, 2*(t/b-x)))
    e = LossExplorer(lambda name, *a: curves[name](*a), list(curves), dict(b=[.01, .5], t=[.5, 2.]), torch.arange(-40, 41, dtype=torch.float64))
    tab, wrong = chromium.new_page(), []
    tab.on('pageerror', lambda err: wrong.append(str(err)))
    tab.set_content(e.html)
    for name in curves:
        tab.select_option('select', label=name)
        for b in (0, 1):
            tab.locator('.knob').nth(0).fill(str(b))
            for t in (0, 1):
                tab.locator('.knob').nth(1).fill(str(t))
                tab.locator('.pt').fill('30')
                values = [.01, .5][b], [.5, 2.][t]
                picture = e.picture(e.compute(name, *values), name, values, 30)
                said = html.unescape(re.search('aria-live="polite">(.*?)</p>', picture)[1])
                assert tab.inner_text('.said') == said
                tick = lambda texts: [float(v.replace('−', '-')) for v in texts]
                assert tick(tab.locator('.tick').all_text_contents()) == pytest.approx(tick(re.findall('class="tick"[^>]*>(.*?)<', picture)), rel=.06)  # a 5 at the end is rounded either way
                assert tab.locator('.knobo').nth(1).inner_text() == f'{values[1]:g}' + ', not in log'*(name == 'log')
    tab.close()
    assert not wrong, wrong


CELL = '''
import torch
from IPython.display import display
from dpo_nb.views.widgets import explore_loss, live_explorer
from dpo_nb.views.brush import Brush, Trails, live_brush, live_trails
from dpo_nb.views.tokens import live_tokens, token_view
from dpo_nb.views.run import live_runs, run_view
from dpo_nb.views.batch import batch_view, live_batch
class Words:
    def decode(self, ids): return f'w{ids[0]}'
z = torch.arange(-6, 7.)
display(live_explorer(explore_loss('f', {b: lambda p, b=b: torch.nn.functional.softplus(-b*p.delta) for b in (.1, .2)}, 'beta', z=z)))
display(live_brush(Brush(z, {'up': z/6, 'down': -z/6}, start=(0, 2))))
line = torch.stack([z+6, z+6], 1)
display(live_trails(Trails(line, {'one': line*.5, 'two': line*.25})))
pair = dict(prompt=['p'], chosen=['a'], rejected=['b'], steps=[dict(step=s, chosen=[.1*s], rejected=[-.1*s]) for s in (0, 5)])
display(live_tokens(token_view([pair, pair])))
display(live_runs(run_view([{'step': s, 'loss': 1/s, 'rewards/chosen': .1*s, 'rewards/rejected': -.1*s, 'rewards/accuracies': 1.} for s in (1, 2, 3)])))
batch = dict(input_ids=torch.tensor([[1, 2, 3], [1, 4, 0]]), attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]), completion_mask=torch.tensor([[0, 1, 1], [0, 1, 0]]))
display(live_batch(batch_view(batch, Words())))
'''


def test_every_explorable_answers_through_a_kernel(tmp_path):
    "A move of a slider is a message; what comes back is the new picture. Core widgets only."
    with Reader(tmp_path) as r:
        r.run(CELL)
        def figure(css): return next(w for w in r.widgets.values() if f'class="{css}"' in str(w.get('value')))
        def move(css, index, **control):
            before = figure(css)['value']
            done = r.send(r.find(**control), dict(method='update', state=dict(index=index), buffer_paths=[]))
            r.until(lambda: done in r.idle and figure(css)['value'] != before, 30)
            return figure(css)['value']
        assert 'dpo-explorer' in move('dpo-explorer', 1, description='beta')
        assert '<td>3</td>' in move('dpo-explorer', 9, description='margin βΔ, logit')
        assert 'from 0 to 6: pushed apart: 1, left alone: 0, pulled back: 1.' in move('dpo-brush', [6, 12], description='from, to')
        assert 'two, step 12' in move('dpo-trails', 1, description='path')
        assert 'two, step 4: KL to the reference, nats 1; expected reward 1.' in move('dpo-trails', 4, _options_labels=[str(k) for k in range(13)], description='step')
        assert 'Step 0: chosen 0.000' in move('dpo-tokens', 0, description='checkpoint')
        assert 'Step 2: loss 0.5' in move('dpo-runs', 1, _options_labels=['1', '2', '3'])
        assert '>w4</td>' in move('dpo-batch', 1, description='show')
        assert {w['_model_module'] for w in r.widgets.values()} <= {'@jupyter-widgets/base', '@jupyter-widgets/controls'}
        assert not [k for k, _ in r.outputs if k == 'error'], r.texts()
