"""The picture that other sites show beside a link to a page: 1200 by 630, the page's own title and claim.

Four colours and flat areas keep each below 25 kB, so every page has one of its own.
"""
import io, math, re, textwrap

from execnb.nbio import read_nb

from project import ROOT, doc_url, pages
from web import order

PAPER, INK, SOFT, CHOSEN = '#ffffff', '#1b1c1e', '#5d636b', '#0a6ebd'


def title_and_claim(name):
    "The first two lines of a page."
    lines = [l.strip() for l in read_nb(ROOT/'nbs'/name).cells[0].source.splitlines() if l.strip()]
    plain = lambda text: re.sub(r'[`*$\\]', '', text.lstrip('#> '))
    return plain(lines[0]), plain(lines[1]) if len(lines) > 1 else ''


def canvas():
    "An empty card: the loss in the corner, and the places of the words."
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor=PAPER)
    ax = fig.add_axes((.66, .1, .3, .36))
    ax.axis('off')
    z = [i/20 for i in range(-80, 101)]
    ax.plot(z, [math.log1p(math.exp(-v)) for v in z], INK, lw=5)
    ax.plot(z, [4/(1 + math.exp(v)) for v in z], CHOSEN, lw=5)
    ax.plot(0, math.log(2), 'o', color=INK, ms=15)
    ax.annotate('ln 2', (0, math.log(2)), (-2.3, .15), color=SOFT, size=20)
    words = dict(name=fig.text(.06, .87, 'dpo_nb', size=24, color=INK, weight='bold'), where=fig.text(.06, .78, '', size=22, color=SOFT),
                 title=fig.text(.06, .72, '', size=50, color=INK, weight='bold', va='top', linespacing=1.15),
                 claim=fig.text(.06, .4, '', size=24, color=SOFT, va='top', linespacing=1.45))
    return fig, words


def saved(fig, path):
    "The figure as a PNG of 32 colours."
    from PIL import Image
    drawn = io.BytesIO()
    fig.savefig(drawn, facecolor=PAPER)
    Image.open(drawn).convert('RGB').quantize(32).save(path, optimize=True)


def cards(out, cfg):
    "A card for each page, in cards/, and the page's own name for it in its head."
    fig, words = canvas()
    for src in pages():
        name = src.relative_to(ROOT/'nbs').as_posix()
        title, claim = title_and_claim(name)
        where = order.place(name)
        if name == 'index.ipynb': title = 'Direct Preference Optimization, page by page'
        lines = textwrap.wrap(title, 34)
        words['title'].set_text('\n'.join(lines[:2]))
        words['claim'].set_text('\n'.join(textwrap.wrap(claim, 44)[:4]))
        words['claim'].set_y(.54 if len(lines) == 1 else .42)
        words['where'].set_text(where[0] if where else '')
        card = out/'cards'/name.replace('.ipynb', '.png')
        card.parent.mkdir(parents=True, exist_ok=True)
        saved(fig, card)
        page = out/name.replace('.ipynb', '.html')
        text = page.read_text(encoding='utf-8')
        page.write_text(text.replace(f'{doc_url(cfg)}/card.png', f'{doc_url(cfg)}/cards/{card.relative_to(out/"cards").as_posix()}'), encoding='utf-8')
    words['title'].set_text('Direct Preference Optimization,\npage by page')
    words['claim'].set_text('\n'.join(textwrap.wrap(cfg['description'], 44)))
    words['where'].set_text('')
    saved(fig, out/'card.png')
    import matplotlib.pyplot as plt
    plt.close(fig)
