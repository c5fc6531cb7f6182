"The first page: its title becomes a hero, with the story beside it, a recorded training that can be played."
import html, json, math, re

from execnb.nbio import mk_cell, read_nb

from project import ROOT, colab_url, doc_url, source_url
from web import order

STORY = ROOT/'nbs'/'site'/'story.json'
BETA = .5  # of the run that is shown first
LN2 = math.log(2)


def likely(p):
    "A probability in words that one can compare."
    if p >= .995: return f'{100*p:.2f} %'
    if p >= .001: return f'{100*p:.2g} %'
    return f'1 in {float(f"{1/p:.2g}"):,.0f}'


def factor(moved):
    "How many times likelier a log-ratio is, in words."
    k = math.exp(abs(moved))
    shown = f'{k:.2g}' if k < 100 else f'{float(f"{k:.2g}"):,.0f}'
    return f'{shown} times as likely' if moved >= 0 else f'{shown} times less likely'


def width(p):
    "The length of a probability's bar: seven powers of ten are 100 %."
    return max(0, min(100, 100*(1 + math.log10(max(p, 1e-12))/7)))


def token(text, r):
    "A token, coloured by what its log-ratio says."
    if not text.strip() or text.startswith('<|'): return ''
    strength = min(abs(r)/1.5, 1)*.62
    style = f' style="background:rgba(var(--{"gain" if r > 0 else "loss"}),{strength:.2f})"' if abs(r) > .04 else ''
    return f'<span class="tok"{style} title="{r:+.2f} nats">{html.escape(text)}</span>'


def side(story, frame, name):
    "One answer: its probability and its tokens."
    p = math.exp(sum(story['start'][name]) + sum(frame[name]))
    tokens = ''.join(token(t, r) for t, r in zip(story['tokens'][name], frame[name]))
    return (f'<div class="side {name}"><div class="label">{name} <output>{likely(p)}</output></div><p>{tokens}</p>'
            f'<div class="bar"><i style="width:{width(p):.1f}%"></i></div></div>')


def curve(frames, steps=60):
    "The loss over the steps, as an SVG."
    x, y = (lambda s: 6 + s/steps*160), (lambda v: 78 - min(v, 1)/.8*68)
    points = ' '.join(f'{x(f["step"]):.1f},{y(f["loss"]):.1f}' for f in frames)
    last = frames[-1]
    return (f'<svg viewBox="0 0 200 92" role="img" aria-label="held-out loss over the steps"><line class="rule" x1="6" x2="166" y1="{y(LN2):.1f}" y2="{y(LN2):.1f}"/>'
            f'<text x="170" y="{y(LN2)+4:.1f}">ln 2</text><polyline class="all" points="{points}"/><polyline class="done" points="{points}"/>'
            f'<circle cx="{x(last["step"]):.1f}" cy="{y(last["loss"]):.1f}" r="3.6"/><text x="6" y="91">loss</text><text class="at" x="166" y="91" text-anchor="end">step {last["step"]}</text></svg>')


def words(frame):
    "What has happened, in two sentences."
    if frame['step'] == 0: return 'Before training the model equals its reference: nothing has moved, and the loss is ln 2 = 0.693, whatever the data.'
    chosen, rejected = sum(frame['chosen']), sum(frame['rejected'])
    said = f'After {frame["step"]} steps the chosen review is {factor(chosen)} as at the start, the rejected one {factor(rejected)}.'
    said = said.replace('less likely as at the start', 'less likely than at the start')
    return f'{said} {int(100*frame["right"] + .5)} % of 96 held-out choices are ranked right.'


def story_html():
    "The figure as it stands without JavaScript: the end of the run that is shown first."
    story = json.loads(STORY.read_text(encoding='utf-8'))
    run = next(r for r in story['runs'] if r['beta'] == BETA and not r['wrong'])
    frame = run['frames'][-1]
    p = 1 - sum(math.exp(sum(story['start'][s]) + sum(frame[s])) for s in ('chosen', 'rejected'))
    betas = sorted({r['beta'] for r in story['runs']})
    choices = ''.join(f'<label><input type="radio" name="story-beta" value="{b:g}"{" checked" if b == BETA else ""}><span>{b:g}</span></label>' for b in betas)
    held = json.dumps(story, ensure_ascii=False, separators=(',', ':')).replace('</', '<\\/')
    return f'''<figure class="story" id="story" aria-label="A recorded training run to play">
<p class="prompt"><b>Prompt</b> {html.escape(story["prompt"])}</p>
{side(story, frame, "chosen")}
{side(story, frame, "rejected")}
<div class="side rest"><div class="label">everything else it could write <output>{likely(p)}</output></div></div>
<div class="bottom"><div><div class="label">What the model writes now</div><p class="says">{html.escape(frame["says"])}</p></div>{curve(run["frames"])}</div>
<p class="words" aria-live="polite">{words(frame)}</p>
<div class="play only-js"><button type="button" class="button go">▶ Train</button><label class="visually-hidden" for="story-step">optimizer step</label>
<input type="range" id="story-step" min="0" max="{len(run["frames"]) - 1}" value="{len(run["frames"]) - 1}"><output class="now">step {frame["step"]}</output></div>
<div class="switches only-js"><fieldset><legend>β</legend>{choices}</fieldset><label class="check"><input type="checkbox" id="story-wrong"> one label in five is wrong</label></div>
<script type="application/json">{held}</script>
</figure>'''


def words_html(cfg):
    "Beside the story: two buttons, how to install, and a word to those who come from TRL."
    tour = order.minutes(read_nb(ROOT/'nbs'/'tour.ipynb').cells)
    colab = colab_url(cfg, 'tour.ipynb')
    second = f'<a class="button" href="{colab}">Open in Colab</a>' if colab else '<a class="button" href="notebooks/tour.ipynb" download>Download the notebook</a>'
    return f'''<div class="hero-words"><p class="actions"><a class="button first" href="tour.html">Read the tour · {tour} min</a> {second}</p>
<pre><code>pip install git+{cfg["git_url"]}
dpo_nb train   # a minute on a laptop</code></pre>
<p class="small">Coming from TRL? <a href="#coming-from-trl">Change one import line.</a> <a href="{source_url(cfg, "nbs/index.ipynb")}">View source</a>
<a href="{colab_url(cfg, "index.ipynb") or "notebooks/index.ipynb"}">This page in Colab</a> <a href="notebooks/index.ipynb" download>Download</a></p></div>'''


FRONT = 'sidebar: false\ntoc: false\npage-layout: full\npage-navigation: false\n'


def dressed(cells, cfg):
    "The cells of the first page with the hero in front; the picture of the story, which is for readers of the README, gives way to the story."
    front = cells[0]
    front.source = re.sub(r'(?m)^title: .*$', 'title: Direct Preference Optimization, page by page\npagetitle: dpo_nb', front.source, count=1).rstrip()
    front.source = re.sub(r'\n---\s*$', f'\n{FRONT}---\n', front.source)
    rest = [c for c in cells[1:] if 'story_figure' not in c.source]
    return [front, mk_cell(words_html(cfg), 'markdown'), mk_cell(story_html(), 'markdown'), *rest]
