"The report of a run: well formed, safe with any text, honest with odd logs, equal to the trainer's numbers, and quiet in a browser."
import json, math, os, random, re, shutil
from html.parser import HTMLParser

import pytest
from project import ROOT

from datasets import Dataset

from dpo_nb.diagnose.doctor import Finding
from dpo_nb.train.ledger import Ledger
from dpo_nb.diagnose.pair_rewards import pair_tokens, token_rewards
from dpo_nb.diagnose.report import code_block, curves, doctor_table, epoch_ends, generations, ledger_table, render_report, saturates, verdict, write_report
from dpo_nb.views.svg import esc, thin, ticks
from dpo_nb.views.token_colours import shade

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync']
ASSETS = ROOT/'dpo_nb'/'assets'/'report'
HOSTILE = ['<script>alert(1)</script>', '</style><script>alert(2)</script>', '</script><img src=x onerror=alert(3)>', '" onfocus="alert(4)" x="', "' onclick='alert(5)",
           ']]><!--', '-->', '&lt;b&gt; &amp;', 'a\0b\x1b[31m\x7f\x85', 'half \ud83d surrogate', '\u202eright to left', 'مرحبا بالعالم', 'שלום', '👩‍👩‍👧 👍🏽 🇫🇷', 'a\r\nb\tc',
           'https://example.org/a.js', '@import "x"', 'url(x)', '\\u003cscript\\u003e', '{{title}}', '${alert(6)}', '日本語', '']


class Page(HTMLParser):
    "A page's elements, attributes and text; fails on an element that is not closed in order, or an id that repeats."
    void = {'meta', 'link', 'wbr', 'input', 'br'}

    def __init__(self, text):
        super().__init__()
        self.names, self.attrs, self.open, self.text, self.inside = [], [], [], '', {}
        self.feed(text)
        self.close()
        assert not self.open, f'not closed: {self.open}'
        ids = [v for _, a in self.attrs for k, v in a if k == 'id']
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attrs.append((tag, attrs))
        if tag not in self.void: self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f'</{tag}> closes {self.open[-3:]}'
        self.open.pop()

    def handle_data(self, data):
        self.text += data if not {'style', 'script'} & set(self.open) else ''
        self.inside[self.open[-1] if self.open else ''] = self.inside.get(self.open[-1] if self.open else '', '') + data


def train_row(step, loss=.6, **more):
    return {'step': step, 'loss': loss, 'grad_norm': 1.5, 'learning_rate': 1e-5, 'rewards/chosen': .1, 'rewards/rejected': -.2, 'rewards/margins': .3,
            'rewards/accuracies': .7, 'num_tokens': 100*step, 'epoch': step/10, **more}


def eval_row(step, loss=.6): return {'eval_'+k if k not in ('step', 'epoch') else k: v for k, v in train_row(step, loss).items()}


LOG = [eval_row(0, math.log(2))] + [r for s in range(1, 41) for r in [train_row(s, .69-.005*s)] + [eval_row(s, .69-.004*s)]*(s % 10 == 0)] + \
      [{'train_runtime': 12.3, 'train_loss': .6, 'step': 40}]


def the_parts(word):
    "Doctor, ledger, generations and code with `word` wherever a text can stand."
    book, stored = Ledger(), word.encode('utf-8', 'replace').decode()  # a dataset holds no half characters
    for e in (1., 2., 3.): book.add(range(12), e, [e*(-1)**(i == 3)*(1+i/10) for i in range(12)])
    rows = Dataset.from_dict({k: [f'{stored} {k} {i}' for i in range(12)] for k in ('prompt', 'chosen', 'rejected')})
    found = [Finding(word, word), Finding('second', word, 'warn', word), Finding('third', word, 'fail', word)]
    return {'Before training': doctor_table(found), 'While training': generations([dict(step=s, prompt=word, text=f'{word} {s//20}') for s in (0, 10, 20)]),
            'Training pairs': ledger_table(book, rows), 'Load the result': code_block(f'print({word!r})', word)}


def a_report(word='word', log=LOG, **more):
    "A report with `word` wherever a text can stand."
    steps = [dict(step=0, chosen=[0., 0.], rejected=[0., 0.]), dict(step=20, chosen=[.11, -.3], rejected=[.5, 0.]), dict(step=40, chosen=[.31, -.2], rejected=[-.5, 0.])]
    pair = dict(prompt=word, chosen=[(word, .31), (' '+word+'\n', -.2)], rejected=[(word, -.5), ('', 0.)], chosen_reward=.11, rejected_reward=-.5, margin=.61, steps=steps)
    sample = dict(prompt=word, before=word, after=word, reward_before=-.5, reward_after=1.)
    unknown = dict(sample, reward_before=None, reward_after=None)
    kwargs = dict(summary=[(word, word, word), (word, .5)], samples=[sample, unknown], pairs=[pair, pair], parts=the_parts(word)) | more
    return render_report(word, log + [{'step': 40, f'eval_{word}_loss': .5}], {f'key {word}': word, 'beta': .1, 'learning_rate': 1e-5}, **kwargs)


# ---- HTML ----

def test_well_formed_and_accessible():
    page = Page(a_report())
    assert page.names.count('h1') == page.names.count('main') == page.names.count('header') == page.names.count('footer') == 1
    levels = [int(n[1]) for n in page.names if re.fullmatch('h[1-6]', n)]
    assert levels[0] == 1 and all(b-a <= 1 for a, b in zip(levels, levels[1:])), f'a heading level is skipped: {levels}'
    attrs = lambda tag: [dict(a) for t, a in page.attrs if t == tag]
    assert attrs('html')[0]['lang'] == 'en' and any(a.get('name') == 'viewport' for a in attrs('meta'))
    assert all(a.get('aria-label') or a.get('aria-hidden') for a in attrs('svg'))
    assert all(a.get('scope') for a in attrs('th'))
    anchors, ids = {a['href'][1:] for a in attrs('a') if a['href'][0] == '#'}, {a.get('id') for _, b in page.attrs for a in [dict(b)]}
    assert anchors and anchors <= ids
    tokens = [a for a in attrs('span') if a.get('class', '').split()[:1] == ['t']]
    assert len(tokens) == 8 and all(a['tabindex'] == '0' and re.fullmatch(r'[+−]\d+\.\d+', a['title']) for a in tokens)


def test_complete_without_script():
    "The numbers that the script moves are all in the page already."
    page = Page(a_report())
    for expected in ('ln 2', 'optimizer step', 'reward: β · nats', 'held-out', '0.530', '70%', 'margin +0.610', 'Mean reward −0.500 → +1.00'):
        assert expected in page.text, expected


def test_no_reference_to_anything_outside():
    text = a_report()
    page = Page(text)
    assert 'http://' not in text and 'https://' not in text and '@import' not in text and 'url(' not in text
    loads = [(t, k, v) for t, a in page.attrs for k, v in a if k in ('src', 'href', 'srcset', 'data', 'action', 'poster', 'xlink:href', 'style') or k.startswith('on')]
    saved = [v for _, k, v in loads if k == 'href' and v.startswith('data:application/x-ndjson;base64,')]
    assert len(saved) == 1 and all(k == 'href' and (v.startswith('#') or v == 'data:,' or v in saved) for _, k, v in loads), loads


def test_policy_names_the_one_script_and_the_one_sheet():
    from base64 import b64encode
    from hashlib import sha256
    text = a_report()
    policy = next(dict(a)['content'] for t, a in Page(text).attrs if dict(a).get('http-equiv') == 'Content-Security-Policy')
    for tag, rule in dict(style='style-src', script='script-src').items():
        inside = re.search(f'<{tag}>(.*?)</{tag}>', text, re.S)[1]
        assert f"{rule} 'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'") and 'unsafe' not in policy


@pytest.mark.parametrize('word', HOSTILE)
def test_no_text_becomes_markup(word):
    "The elements, and the names of their attributes, are the same whatever the text."
    shape = lambda p: [(t, [k for k, _ in a]) for t, a in p.attrs]
    page, plain = Page(a_report(word)), Page(a_report('word'))
    if word: assert shape(page) == shape(plain)
    assert [page.inside[k] for k in ('style', 'script')] == [plain.inside[k] for k in ('style', 'script')]
    a_report(word).encode('utf-8')
    assert not re.search('[\x00-\x08\x0b-\x1f\x7f-\x9f]', a_report(word))


def test_any_characters_survive_or_are_shown():
    rng = random.Random(0)
    for _ in range(200):
        word = ''.join(chr(rng.choice([rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x110000)])) for _ in range(30))
        safe = esc(word)
        safe.encode('utf-8')
        back = Page(f'<p title="{safe}">{safe}</p>')
        assert back.text == dict(back.attrs[0][1])['title'] and len(back.text) == len(re.sub('\r\n?', '\n', word))


# ---- odd input ----

ODD = dict(empty=[], one_row=[train_row(10)], one_eval=[eval_row(0)], no_eval=[train_row(s) for s in range(1, 9)], only_nan=[train_row(s, math.nan, grad_norm=math.inf) for s in (1, 2)],
           some_nan=[train_row(s, math.nan if s in (3, 4) else .5) for s in range(1, 9)], strings=[dict(step=1, loss='a', grad_norm=None)], no_step=[dict(loss=.5), dict(loss=.4)],
           constant=[train_row(s, 0.) for s in range(1, 5)], huge=[train_row(1, 1e300), train_row(2, -1e300)], other=[dict(foo=1)], tiny=[train_row(s, 1e-12*s) for s in range(1, 5)],
           two_sets=[{'step': 5, 'eval_en_loss': .6, 'eval_rewards/margins': .1}, {'step': 5, 'eval_de_loss': .7, 'eval_rewards/margins': .2}])


@pytest.mark.parametrize('name', ODD)
def test_odd_logs(name):
    page = Page(render_report(name, ODD[name], {}))
    assert 'NaN' not in page.text and not any('nan' in str(v) or 'inf' in str(v) for t, a in page.attrs for k, v in a if k in ('d', 'x', 'y', 'data-axis'))
    assert page.names.count('h1') == 1 and verdict(ODD[name], {})[0] in ('good', 'mixed', 'bad')


def test_long_log_is_thinned_and_keeps_its_spike():
    log = [train_row(s, 9. if s == 7003 else .5+.1*math.sin(s/300)) for s in range(10_000)]
    text = render_report('Long', log, {})
    assert len(text) < 500_000 and '&quot;9.00&quot;' in text and 'smallest and its largest' in text
    Page(text)


def test_thin_and_ticks_hold_for_any_points():
    rng = random.Random(1)
    for _ in range(200):
        n = rng.randrange(1, 2000)
        points = [(s, rng.choice([rng.gauss(0, 10**rng.uniform(-9, 9)), math.nan])) for s in range(n)]
        kept = thin(points, 100)
        assert len(kept) <= 101
        finite = [v for _, v in points if math.isfinite(v)]
        if finite: assert {min(finite), max(finite)} <= {v for _, v in kept}
        scale = 10**rng.uniform(-6, 6)
        lo, size = rng.uniform(-1, 1)*scale, scale*10**rng.uniform(-6, 3)
        marks = ticks(lo, lo+size)
        assert 1 <= len(marks) <= 6 and all(lo-size*1e-4 <= t <= lo+size*(1+1e-4) for t in marks) and len(set(marks)) == len(marks)


def test_long_texts_are_folded():
    text = a_report('long ' * 20_000, samples=[dict(prompt='p '*5000, before='b'*30_000, after='a', reward_before=None, reward_after=None)])
    page = Page(text)
    assert page.names.count('details') > 5 and 'more characters are not in this file' in page.text


def test_empty_parts_are_left_out():
    page = Page(render_report('T', [], {}, summary=[], samples=[], pairs=[]))
    assert 'h2' not in page.names and 'table' not in page.names and 'dl' not in page.names


def test_secrets_and_masks_are_not_printed():
    text = render_report('T', LOG, {'hub_token': 'hf_secret1', 'push_to_hub_token': 'hf_secret2', 'wandb_api_key': 'hf_secret3', 'db_password': 'hf_secret4', 'pad_token': '<PAD_TOKEN>'})
    assert 'hf_secret' not in text and 'PAD_TOKEN' not in text


def test_summary_and_verdict_speak_of_held_out_pairs_first():
    assert verdict(LOG, {})[0] == 'good' and 'held-out loss 0.693 → 0.530 in 40 steps' in verdict(LOG, {})[1]
    flat = [dict(step=0, eval_loss=.69314), dict(step=40, eval_loss=.69311)]
    assert verdict(flat, {})[0] == 'bad' and 'It has not learned: held-out loss 0.693 → 0.693' in verdict(flat, {})[1]
    assert 'Held' not in verdict([train_row(1), train_row(2, .5)], {})[1]
    assert curves(ODD['two_sets'], 'rewards/margins') == {'held-out en': [(5, .1)], 'held-out de': [(5, .2)]}


# ---- writing ----

def test_a_failure_never_destroys_an_old_report(tmp_path, monkeypatch):
    path = write_report(tmp_path/'a'/'report.html', title='Old', log_history=LOG, config={})
    old = path.read_bytes()
    def fails(*_): raise OSError('disk full')
    for where, what in (('dpo_nb.diagnose.report.render_report', fails), ('os.replace', fails), ('pathlib.Path.write_text', lambda self, *a, **k: (self.touch(), fails()))):
        with monkeypatch.context() as m:
            m.setattr(where, what)
            with pytest.raises(OSError, match='disk full'): write_report(path, title='New', log_history=LOG, config={})
        assert path.read_bytes() == old and os.listdir(path.parent) == ['report.html']
    assert write_report(str(path), title='New', log_history=LOG, config={}).read_bytes() != old


def test_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path/'other').touch()
    assert write_report(tmp_path/'r.html', title='T', log_history=[], config={}).stat().st_mode == (tmp_path/'other').stat().st_mode


# ---- tokens ----

@pytest.fixture(scope='module')
def toy():
    from dpo_nb.toy import load_toy_pairs, load_toy_tokenizer
    return load_toy_pairs(), load_toy_tokenizer()


def a_trainer(toy, folder, rows=None, moved=True, ref_model=None, peft_config=None, model=None, **kwargs):
    "A trainer whose policy has been moved away from its reference by noise."
    import torch
    from dpo_nb.toy import load_toy_model
    from dpo_nb.train.config import DPOConfig
    from dpo_nb.train.trainer import DPOTrainer
    args = DPOConfig(str(folder), report_to='none', bf16=False, disable_tqdm=True, gradient_checkpointing=False, per_device_eval_batch_size=8, beta=.25, **kwargs)
    t = DPOTrainer(model or load_toy_model(), ref_model, args, train_dataset=rows or toy[0]['train'].select(range(4)), processing_class=toy[1], peft_config=peft_config)
    g = torch.Generator().manual_seed(0)
    for p in t.model.parameters():
        if moved and p.requires_grad: p.data += .02*torch.randn(p.shape, generator=g)
    return t


def measured(t, rows):
    "Mean rewards as the trainer logs them."
    t.evaluate(rows)
    return [t.state.log_history[-1][f'eval_rewards/{k}'] for k in ('chosen', 'rejected', 'margins')]


def plain(row): return dict(prompt=row['prompt'][0]['content'], chosen=' '+row['chosen'][0]['content'], rejected=' '+row['rejected'][0]['content'])


FORMATS = dict(conversational=lambda r: {k: r[k] for k in ('prompt', 'chosen', 'rejected')}, standard=plain,
               implicit=lambda r: dict(chosen=r['prompt']+r['chosen'], rejected=r['prompt']+r['rejected']))


@pytest.mark.parametrize('layout', FORMATS)
@pytest.mark.parametrize('limits', [{}, dict(max_length=24), dict(max_length=24, truncation_mode='keep_end')], ids=['whole', 'start', 'end'])
def test_token_rewards_add_up_to_the_trainers(toy, tmp_path, layout, limits):
    from datasets import Dataset
    rows = Dataset.from_list([FORMATS[layout](r) for r in toy[0]['test'].select(range(6))])
    t = a_trainer(toy, tmp_path, rows, **limits)
    for source in (rows, rows.to_list(), rows.to_iterable_dataset()):
        pairs = pair_tokens(t, source, n=len(rows))
        ours = [sum(p[k] for p in pairs)/len(pairs) for k in ('chosen_reward', 'rejected_reward', 'margin')]
        assert ours == pytest.approx(measured(t, rows), rel=1e-4, abs=1e-5)
    for p in pairs:
        for side in ('chosen', 'rejected'): assert math.fsum(r for _, r in p[side]) == pytest.approx(p[side+'_reward'], abs=1e-12)
        assert p['margin'] == p['chosen_reward'] - p['rejected_reward']


@pytest.mark.parametrize('kind', ['new adapter', 'continued adapter', 'own reference'])
def test_token_rewards_know_the_reference(toy, tmp_path, kind):
    from dpo_nb.toy import load_toy_model
    from peft import LoraConfig, get_peft_model
    lora = LoraConfig(task_type='CAUSAL_LM', target_modules=['q_proj', 'v_proj'])
    kwargs = {'new adapter': lambda: dict(peft_config=lora), 'continued adapter': lambda: dict(model=get_peft_model(load_toy_model(), lora)),
              'own reference': lambda: dict(ref_model=load_toy_model())}[kind]
    rows = toy[0]['test'].select(range(3))
    assert all(r == 0 for p in pair_tokens(a_trainer(toy, tmp_path, moved=False, **kwargs()), rows) for _, r in p['chosen'] + p['rejected'])
    t = a_trainer(toy, tmp_path, **kwargs())
    pairs = pair_tokens(t, rows)
    assert [sum(p[k] for p in pairs)/3 for k in ('chosen_reward', 'rejected_reward', 'margin')] == pytest.approx(measured(t, rows), rel=1e-4, abs=1e-5)


def test_mode_and_gradients_are_left_as_they_were(toy, tmp_path):
    t = a_trainer(toy, tmp_path)
    for mode in (True, False):
        t.model.train(mode)
        pair_tokens(t, toy[0]['test'], n=1)
        assert t.model.training is mode and all(p.grad is None for p in t.model.parameters())
    t.data_collator = lambda rows: 1/0
    t.model.train()
    with pytest.raises(ZeroDivisionError): pair_tokens(t, toy[0]['test'], n=1)
    assert t.model.training


def test_rows_without_room_are_left_out(toy, tmp_path):
    long = [dict(prompt='many words '*30, chosen=' a', rejected=' b'), dict(prompt='few', chosen=' a good one', rejected=' b')]
    t = a_trainer(toy, tmp_path, max_length=32)
    assert [p['prompt'] for p in pair_tokens(t, long)] == ['few'] and pair_tokens(t, long[:1]) == [] and pair_tokens(t, []) == []


@pytest.mark.skipif('not __import__("torch").cuda.is_available()', reason='needs a GPU')
def test_token_rewards_on_a_gpu(toy, tmp_path):
    t = a_trainer(toy, tmp_path)
    assert t.model.device.type == 'cuda'
    rows = toy[0]['test'].select(range(3))
    assert sum(p['margin'] for p in pair_tokens(t, rows))/3 == pytest.approx(measured(t, rows)[2], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize('text', ['Très bon 👍!', '日本語のテスト', '👩‍👩‍👧', 'a\ufffdb', 'naïve café ☕', '\n\n  two  spaces ', '<|im_end|>\n', 'é'])
def test_no_character_is_torn(toy, text):
    ids = toy[1](text)['input_ids']
    values = [float(2**i) for i in range(len(ids))]
    pieces = token_rewards(toy[1], ids, values)
    assert ''.join(t for t, _ in pieces) == text == toy[1].decode(ids, skip_special_tokens=False)
    assert sum(r for _, r in pieces) == sum(values)
    if '\ufffd' not in text: assert not any('\ufffd' in t for t, _ in pieces)


def test_sentencepiece_like_tokenizers_keep_their_spaces():
    class Tokenizer:  # drops the space of whatever comes first
        words = ['▁The', '▁cat', 's', '▁sat', '.']
        def decode(self, ids, **_): return ''.join(self.words[i] for i in ids).replace('▁', ' ').removeprefix(' ')
    assert [t for t, _ in token_rewards(Tokenizer(), [0, 1, 2, 3, 4], [0.]*5)] == ['The', ' cat', 's', ' sat', '.']


# ---- colours ----

CVD = dict(none=[[1, 0, 0], [0, 1, 0], [0, 0, 1]],  # Machado, Oliveira, Fernandes 2009, severity 1, on linear RGB
           protan=[[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
           deutan=[[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
           tritan=[[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]])


def themes():
    "The colour variables of the light and of the dark theme."
    css = (ASSETS/'report.css').read_text(encoding='utf-8')
    found = [dict(re.findall(r'--([\w-]+): ([^;]+);', block)) for block in re.findall(r':root \{(.*?)\}', css, re.S)[:2]]
    return dict(light=found[0], dark={**found[0], **found[1]})


def rgb(value):
    if not value.startswith('#'): return [int(v)/255 for v in value.split()]
    value = value[1:] if len(value) == 7 else ''.join(c*2 for c in value[1:])
    return [int(value[i:i+2], 16)/255 for i in (0, 2, 4)]


def linear(c): return [v/12.92 if v <= .04045 else ((v+.055)/1.055)**2.4 for v in c]
def over(c, alpha, bg): return [alpha*a + (1-alpha)*b for a, b in zip(c, bg)]
def luminance(c): return sum(w*v for w, v in zip((.2126, .7152, .0722), linear(c)))


def contrast(a, b):
    hi, lo = sorted((luminance(a), luminance(b)), reverse=True)
    return (hi+.05)/(lo+.05)


def lab(c, kind):
    seen = [min(1, max(0, sum(m*v for m, v in zip(row, linear(c))))) for row in CVD[kind]]
    xyz = [sum(m*v for m, v in zip(row, seen)) for row in ([.4124, .3576, .1805], [.2126, .7152, .0722], [.0193, .1192, .9505])]
    f = [t**(1/3) if t > .008856 else 7.787*t + 16/116 for t in (x/n for x, n in zip(xyz, (.9505, 1., 1.089)))]
    return [116*f[1]-16, 500*(f[0]-f[1]), 200*(f[1]-f[2])]


def test_text_is_readable_on_every_shade():
    css = (ASSETS/'report.css').read_text(encoding='utf-8')
    alphas = {n: float(a) for n, a in re.findall(r'\.([pn]\d) \{ background: rgb\(var\(--(?:up|down)\)/([\d.]+)\) \}', css)}
    assert set(alphas) == {f'{s}{k}' for s in 'pn' for k in range(1, 9)} and shade(1, 1) in alphas
    assert all(alphas[f'p{k}'] == alphas[f'n{k}'] for k in range(1, 9))
    for theme, v in themes().items():
        bg, ink = rgb(v['bg']), rgb(v['ink'])
        for name, alpha in alphas.items():
            assert contrast(ink, over(rgb(v['up' if name[0] == 'p' else 'down']), alpha, bg)) >= 4.5, (theme, name)
        for name in ('soft', 'chosen', 'rejected', 'good', 'mixed', 'bad'): assert contrast(rgb(v[name]), bg) >= 4.5, (theme, name)
        assert contrast(rgb(v['train']), bg) >= 3 and contrast(ink, rgb(v['card'])) >= 4.5


@pytest.mark.parametrize('kind', CVD)
def test_colours_stay_apart_for_colour_blind_readers(kind):
    for theme, v in themes().items():
        bg = rgb(v['bg'])
        far = lambda a, b: math.dist(lab(a, kind), lab(b, kind))
        assert far(rgb(v['chosen']), rgb(v['rejected'])) > 25, theme
        assert far(over(rgb(v['up']), .64, bg), over(rgb(v['down']), .64, bg)) > 25, theme


# ---- a browser ----

@pytest.fixture(scope='module')
def chromium():
    "The system's Chromium; where there is none a developer's run skips, a CI run fails."
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found: (pytest.fail if os.environ.get('CI') == 'true' else pytest.skip)(f'no browser: install one of {", ".join(BROWSERS)}')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium, request):
    "A new tab that notes what it complains of and what it asks for."
    context = chromium.new_context(**getattr(request, 'param', {}))
    tab = context.new_page()
    tab.noted, tab.asked = [], []
    tab.on('console', lambda m: tab.noted.append(f'{m.type}: {m.text}'))
    tab.on('pageerror', lambda e: tab.noted.append(str(e)))
    tab.on('dialog', lambda d: (tab.noted.append(f'dialog: {d.message}'), d.dismiss()))
    tab.on('request', lambda r: tab.asked.append(r.url))
    yield tab
    context.close()


SCREENS = [dict(viewport=dict(width=w, height=800), color_scheme=c, java_script_enabled=js) for w, c, js in
           [(1280, 'light', True), (1280, 'dark', True), (375, 'light', True), (320, 'dark', True), (1280, 'light', False)]]


@pytest.mark.parametrize('tab', SCREENS, indirect=True, ids=['desktop', 'dark', 'phone', 'small phone', 'no script'])
@pytest.mark.parametrize('word', ['word', 'W'*400, ' '.join(HOSTILE)], ids=['plain', 'long', 'hostile'])
def test_browser_opens_it_quietly(tab, tmp_path, word):
    path = tmp_path/'report.html'
    path.write_text(a_report(word), encoding='utf-8')
    tab.goto(path.as_uri(), wait_until='load')
    assert tab.noted == [] and tab.asked == [path.as_uri()]
    wide = 'es => es.filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => `${e.tagName} ${e.className}`)'
    assert tab.locator('body, body *:not(svg *)').evaluate_all(wide) == []
    shot = tab.screenshot(full_page=True)
    assert len(shot) > 20_000
    assert len(tab.pdf(format='A4')) > 10_000


def test_policy_stops_what_the_escape_would_miss(tab, tmp_path):
    "The second lock: markup put into the finished file by force does not run and loads nothing."
    path = tmp_path/'report.html'
    path.write_text(a_report().replace('<footer>', '<script>alert(1)</script><img src="http://127.0.0.1:9/x.png" onerror="alert(2)"><footer>'), encoding='utf-8')
    tab.goto(path.as_uri(), wait_until='load')
    assert not any(n.startswith('dialog') for n in tab.noted) and sum('Content Security Policy' in n for n in tab.noted) >= 2


def test_pointer_and_keys_read_the_chart(tab, tmp_path):
    path = tmp_path/'report.html'
    path.write_text(a_report(), encoding='utf-8')
    tab.goto(path.as_uri())
    chart = tab.locator('figure').first
    said = lambda: [b.inner_text() for b in chart.locator('b').all()]
    svg = chart.locator('svg[data-lines]')
    drawn = json.loads(svg.get_attribute('data-lines'))
    assert said()[:2] == ['40', '0.490']
    svg.scroll_into_view_if_needed()
    box, (x0, x1, left, right, width) = svg.bounding_box(), json.loads(svg.get_attribute('data-axis'))
    tab.mouse.move(box['x'] + box['width']*(left + (20-x0)/(x1-x0)*(right-left))/width, box['y'] + 60)
    assert said()[:3] == ['20', dict(map(tuple, drawn[0][1]))[20], '0.610']
    svg.focus()
    tab.keyboard.press('ArrowRight')
    assert said()[:3] == ['21', dict(map(tuple, drawn[0][1]))[21], '0.610 at 20']
    assert tab.noted == []


def test_keys_walk_the_tokens_and_show_their_numbers(tab, tmp_path):
    path = tmp_path/'report.html'
    path.write_text(a_report(), encoding='utf-8')
    tab.goto(path.as_uri())
    answer = tab.locator('.tokens').first
    assert answer.locator('[tabindex="0"]').count() == 1      # one stop of the Tab key
    answer.locator('.t').first.focus()
    tab.keyboard.press('ArrowRight')
    focused = tab.evaluate('document.activeElement.title')
    assert focused == answer.locator('.t').nth(1).get_attribute('title') == '−0.200'
    assert tab.evaluate('getComputedStyle(document.activeElement, "::after").content') == '"−0.200"'
    tab.keyboard.press('Tab')
    assert tab.evaluate('document.activeElement.closest(".tokens").getAttribute("aria-label")') == 'tokens of the rejected answer of pair 1'


def test_it_works_inside_a_frame_without_an_address(tab, tmp_path):
    "As notebooks and the site embed it: sections are reached, and no second copy of the outer page is loaded."
    from html import escape
    path = tmp_path/'outer.html'
    path.write_text(f'<!DOCTYPE html><title>outer</title><iframe width="800" height="400" srcdoc="{escape(a_report())}"></iframe>', encoding='utf-8')
    tab.goto(path.as_uri(), wait_until='load')
    frame = tab.frames[1]
    frame.locator('nav a').last.click()
    assert frame.url == 'about:srcdoc' and frame.evaluate('scrollY') > 400
    assert tab.noted == [] and tab.asked == [path.as_uri()]


def test_epochs_and_plateaus():
    assert epoch_ends([train_row(s) for s in range(1, 31)]) == [(10, 'epoch 1'), (20, 'epoch 2')] and epoch_ends([{'loss': 1.}]) == []
    rng = random.Random(2)
    for _ in range(100):
        points = [(s, rng.random()) for s in range(rng.randrange(0, 9))]
        at = saturates(points)
        assert at is None or min(v for s, v in points if s >= at) >= max(v for _, v in points)-.02-1e-6


def at(tab, tmp_path, **more):
    path = tmp_path/'report.html'
    path.write_text(a_report(**more), encoding='utf-8')
    tab.goto(path.as_uri())


def test_slider_moves_numbers_and_shades(tab, tmp_path):
    at(tab, tmp_path)
    pair, slider, out = tab.locator('.pair').first, tab.locator('.moments input'), tab.locator('.moments output')
    seen = lambda: [pair.locator('h3').inner_text(), *(t.get_attribute('title') for t in pair.locator('.tokens .t').all())]
    last = seen()
    assert slider.is_visible() and out.inner_text() == '40' and 'margin +0.610 ✓' in last[0] and last[1] == '+0.310'
    slider.focus()
    for _ in range(2): tab.keyboard.press('ArrowLeft')
    assert out.inner_text() == '0' and slider.get_attribute('aria-valuetext') == 'step 0' and 'margin 0 ✗' in seen()[0] and set(t[1:] for t in seen()[1:]) == {'0.000'}
    assert [t.get_attribute('class') for t in pair.locator('.tokens .t').all()] == ['t']*4
    tab.keyboard.press('End')
    assert seen() == last and tab.noted == []


def test_tables_are_sorted_by_keyboard(tab, tmp_path):
    at(tab, tmp_path)
    table = tab.locator('table.ledger')
    pairs = lambda: [c.inner_text() for c in table.locator('tbody th').all()]
    assert pairs()[0] == '3' and len(pairs()) == 12  # the lowest margin
    table.locator('thead button', has_text='Margin').focus()
    tab.keyboard.press('Enter')
    assert pairs()[0] == '3' and table.locator('th[aria-sort=ascending]').inner_text().startswith('Margin')
    tab.keyboard.press('Enter')
    assert pairs()[0] == '11' and pairs()[-1] == '3' and table.locator('th[aria-sort=descending]').count() == 1
    table.locator('thead button', has_text='Pair').click()
    assert pairs() == [str(i) for i in range(12)]
    doctor = tab.locator('table.doctor')
    assert [r.get_attribute('class') for r in doctor.locator('tbody tr').all()] == ['fail', 'warn', 'ok'] and tab.noted == []


def test_suspects_can_be_saved_and_code_copied(tab, tmp_path):
    at(tab, tmp_path, word='Grüße <b>')
    with tab.expect_download() as got: tab.locator('a[download]').click()
    line, = [json.loads(l) for l in open(got.value.path(), encoding='utf-8')]
    assert (line['row'], line['chosen'], line['verdict'], got.value.suggested_filename) == (3, 'Grüße <b> chosen 3', 'probably mislabelled', 'suspicious.jsonl')
    tab.locator('.code button').click()
    tab.wait_for_function("document.querySelector('.code button').textContent != 'Copy'")
    assert tab.evaluate('getSelection().toString()') == "print('Grüße <b>')"


def test_the_embedded_size_stays_small():
    long = ' '.join(['word']*60)
    book = Ledger(); book.add(range(2000), 0, [1.]*2000)
    rows = Dataset.from_dict({k: [long]*2000 for k in ('prompt', 'chosen', 'rejected')})
    assert len(ledger_table(book, rows)) < 500_000
