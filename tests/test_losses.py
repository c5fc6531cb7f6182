"""Every loss against an independent closed form, against TRL 1.16.0 (recorded, live on made-up numbers, live in training), and against its own promises."""
import json, sys, zlib
from pathlib import Path

import pytest, torch
from hypothesis import given, settings, strategies as st

import closed_forms
import dpo_nb
from conftest import copy_checkout, run
from dpo_nb.divergences import score_function
from dpo_nb.logps import TokenScores
from dpo_nb.losses.objective import Objective
from dpo_nb.losses.registry import bind_losses, divergence_losses, get_loss, losses, reference_free
from dpo_nb.pairs import PairLogps
from trl_cases import ALL, CASES, SEEDS, WITH_DIVERGENCE, batch

live = pytest.mark.skipif(sys.version_info < (3, 11), reason='TRL 1.16.0 needs Python 3.11')
GOLDEN = json.loads((Path(__file__).parent/'trl_golden.json').read_text(encoding='utf-8'))
EXTRA = ('cdpo', 'simpo', 'dpop', 'rdpo', 'cal_dpo', 'chi_po', 'orpo', 'bco')
DIVERGENCES = [('reverse_kl', .5), ('forward_kl', .5), ('js_divergence', .5), ('alpha_divergence', .3), ('alpha_divergence', .5), ('alpha_divergence', 2.)]
SMOOTHED = {'robust': .1, 'cdpo': .1, 'exo_pair': .1, 'aot': .1, 'aot_unpaired': .1}


def test_every_name_is_there():
    assert set(losses) == {*ALL, *EXTRA}
    assert divergence_losses >= set(WITH_DIVERGENCE) and divergence_losses.isdisjoint(set(ALL)-set(WITH_DIVERGENCE))


# Closed forms

def numbers(seed, B, dtype):
    "Pairs whose log-ratios every dtype represents exactly: eighths of a nat."
    g = torch.Generator().manual_seed(seed)
    eighths = lambda: (-torch.randint(1, 40, (B,), generator=g)/8).to(dtype)
    return PairLogps(*(eighths() for _ in range(4)), *(torch.randint(1, 7, (B,), generator=g).to(dtype) for _ in range(2)))


def against_closed_form(name, dtype, seed, B, tol, div='reverse_kl', a=.5):
    p, beta, eps = numbers(seed, B, dtype), 2. if name == 'simpo' else .25, SMOOTHED.get(name, 0.)
    c, r = p.chosen.clone().requires_grad_(), p.rejected.clone().requires_grad_()
    p = PairLogps(c, r, p.ref_chosen, p.ref_rejected, p.chosen_len, p.rejected_len, score_function(div, a))
    (f, _), = bind_losses(name, beta=beta, label_smoothing=eps, discopop_tau=.5, simpo_gamma=.5, dpop_lambda=3., rdpo_alpha=.01, chi_po_clip=None)
    loss = f(p).mean()
    grads = torch.autograd.grad(loss, (c, r), allow_unused=True)
    six = zip(*(v.double().tolist() for v in (p.chosen, p.rejected, p.ref_chosen, p.ref_rejected, p.chosen_len, p.rejected_len)))
    want, *slopes = closed_forms.batch(name, list(six), beta=beta, eps=eps, tau=.5, lam=3., div=div, a=a)
    scale = max(1., abs(want))
    assert loss.dtype == dtype
    assert abs(loss.item()-want) <= tol*scale, (loss.item(), want)
    for g, s in zip(grads, slopes):
        s = torch.tensor(s, dtype=torch.float64)
        g = torch.zeros_like(s) if g is None else g.double()
        assert (g-s).abs().max() <= tol*max(s.abs().max().item(), beta), (g, s)


@pytest.mark.parametrize('dtype, tol', [(torch.float64, 1e-9), (torch.float32, 2e-5), (torch.bfloat16, 4e-2)], ids=['fp64', 'fp32', 'bf16'])
@pytest.mark.parametrize('name', [n for n in losses if n != 'bco'])
def test_closed_form(name, dtype, tol):
    for seed, B in ((0, 1), (1, 5), (2, 16)): against_closed_form(name, dtype, seed, B, tol)


@pytest.mark.parametrize('dtype, tol', [(torch.float64, 1e-9), (torch.float32, 2e-5), (torch.bfloat16, 6e-2)], ids=['fp64', 'fp32', 'bf16'])
@pytest.mark.parametrize('div, a', DIVERGENCES[1:], ids=lambda x: str(x))
@pytest.mark.parametrize('name', sorted(divergence_losses))
def test_closed_form_with_divergence(name, div, a, dtype, tol):
    for seed, B in ((3, 1), (4, 6)): against_closed_form(name, dtype, seed, B, tol, div, a)


# TRL

def our_loss(logps, ref_logps, mask, log_p2, *, loss_type, loss_weights=None, beta=.1, label_smoothing=0., f_divergence_type='reverse_kl',
             f_alpha_divergence_coef=.5, ld_alpha=None, use_weighting=False, discopop_tau=.05):
    "(loss, ∂loss/∂logps, rewards): the trainer's own path from token log-probs on."
    objective = Objective(loss_type, loss_weights, f_divergence_type=f_divergence_type, f_alpha_divergence_coef=f_alpha_divergence_coef, ld_alpha=ld_alpha,
                          use_weighting=use_weighting, beta=beta, label_smoothing=label_smoothing, discopop_tau=discopop_tau)
    logps, mask = logps.detach().clone().requires_grad_(), mask[:, 1:].bool()
    scores = TokenScores(logps*mask, mask, log_p2=log_p2)
    p = objective.pairs(scores, objective.logps(TokenScores(ref_logps*mask, mask)))
    loss, _ = objective(p, scores)
    rw, rl = p.rewards(beta)
    return loss.detach(), torch.autograd.grad(loss, logps)[0], {'rewards/chosen': rw.mean().item(), 'rewards/margins': (rw-rl).mean().item(), 'logps/chosen': p.chosen.mean().item()}


def same(ours, want, tol=1e-4):
    "Relative to the larger of the two and to the scale of the whole tensor; 2e-6 nats is the spacing of fp32 log-probs."
    ours, want = torch.as_tensor(ours), torch.as_tensor(want)
    assert ours.shape == want.shape
    assert ((ours-want).abs() <= tol*torch.maximum(want.abs(), .01*want.abs().max()) + 2e-6).all(), (ours, want)


@pytest.mark.parametrize('row', GOLDEN['rows'], ids=lambda r: ' '.join(map(str, [*r['case'].values(), f'B={r["B"]}'])))
def test_recorded_values_of_trl(row):
    logps, ref, log_p2, mask = batch(row['seed'], row['B'])
    loss, grad, rewards = our_loss(logps, ref, mask, log_p2, **row['case'])
    same(loss, row['loss']); same(grad.flatten(), row['grad'])
    for k, v in rewards.items(): same(v, row[k])


def test_recording_is_of_the_version_compared_with():
    assert GOLDEN['versions']['trl'] == '1.16.0'
    assert [r['case'] for r in GOLDEN['rows'][::len(SEEDS)]] == CASES


@live
@pytest.mark.parametrize('case', CASES, ids=lambda c: ' '.join(map(str, c.values())))
def test_trl_live_on_other_numbers(case):
    from trl_stub import trl_loss
    logps, ref, log_p2, mask = batch(11, 4, T=9)
    ours, theirs = our_loss(logps, ref, mask, log_p2, **case), trl_loss(logps, ref, mask, log_p2, **case)
    same(ours[0], theirs[0]); same(ours[1], theirs[1])
    for k, v in ours[2].items(): same(v, theirs[2][k])


# Where we differ on purpose

@live
@pytest.mark.parametrize('loss_type', ['sft', 'hinge'])
def test_weighting_works_where_trl_crashes(loss_type):
    from trl_stub import trl_loss
    numbers = batch(5, 3)
    logps, ref, log_p2, mask = numbers
    with pytest.raises(RuntimeError): trl_loss(logps, ref, mask, log_p2, loss_type=loss_type, use_weighting=True)
    loss, grad, _ = our_loss(logps, ref, mask, log_p2, loss_type=loss_type, use_weighting=True)
    assert loss.isfinite() and grad.isfinite().all() and grad.abs().max() > 0


@live
def test_forward_kl_far_from_the_reference_is_finite_here_and_nan_there():
    from trl_stub import trl_loss
    mask = torch.ones(2, 3, dtype=torch.long)
    logps, ref = torch.full((2, 2), -100.), torch.full((2, 2), -1.)
    theirs, _, _ = trl_loss(logps, ref, mask, loss_type='sigmoid', f_divergence_type='forward_kl')
    ours, grad, _ = our_loss(logps, ref, mask, None, loss_type='sigmoid', f_divergence_type='forward_kl')
    assert theirs.isnan() and ours.isfinite() and grad.isfinite().all()


@live
def test_discopop_far_on_the_wrong_side_is_finite_here_and_nan_there():
    from trl_stub import trl_loss
    mask = torch.ones(2, 3, dtype=torch.long)
    logps, ref = torch.tensor([[-900., -900.], [-1., -1.]]), torch.full((2, 2), -1.)
    theirs, _, _ = trl_loss(logps, ref, mask, loss_type='discopop')
    ours, grad, _ = our_loss(logps, ref, mask, None, loss_type='discopop')
    assert theirs.isnan() and ours.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize('kw, says', [
    (dict(loss_type='exo_pair'), 'label_smoothing'), (dict(loss_type='robust', label_smoothing=.5), 'label_smoothing'),
    (dict(loss_type='robust', label_smoothing=-.125), 'cdpo'), (dict(ld_alpha=1.5), 'ld_alpha'), (dict(ld_alpha=-.1), 'ld_alpha'),
    (dict(loss_type='aot', use_weighting=True), 'use_weighting'), (dict(loss_type=['sigmoid', 'aot_unpaired'], use_weighting=True), 'use_weighting'),
    (dict(loss_type='nca_pair', f_divergence_type='js_divergence'), 'f_divergence_type'), (dict(f_divergence_type='chi2'), 'f_divergence_type'),
    (dict(loss_type='dpo'), 'choose one of'), (dict(loss_type=['sigmoid', 'sft'], loss_weights=[1.]), 'one weight per loss'),
    (dict(loss_type='discopop', discopop_tau=0.), 'discopop_tau')])
def test_refused_at_construction(kw, says, tmp_path):
    with pytest.raises(ValueError, match=says): dpo_nb.DPOConfig(str(tmp_path), **kw)


@pytest.mark.parametrize('kw, says', [(dict(label_smoothing=.1), 'cdpo'), (dict(discopop_tau=.1), 'discopop'), (dict(loss_type='ipo', simpo_gamma=1.), 'simpo'), (dict(loss_type='simpo'), 'beta=0.1'),
                                      (dict(f_divergence_type='alpha_divergence', f_alpha_divergence_coef=2.), 'f_alpha_divergence_coef')])
def test_a_setting_that_does_nothing_is_said(kw, says, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('dpo_nb.train.config.logger.warning', said.append)
    dpo_nb.DPOConfig(str(tmp_path), **kw)
    assert len(said) == 1 and says in said[0], said


def test_settings_that_are_read_are_not_mentioned(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('dpo_nb.train.config.logger.warning', said.append)
    dpo_nb.DPOConfig(str(tmp_path))
    dpo_nb.DPOConfig(str(tmp_path), loss_type=['sigmoid', 'robust', 'discopop', 'simpo', 'dpop', 'rdpo', 'chi_po'], label_smoothing=.1, discopop_tau=.1,
                     beta=2., simpo_gamma=1., dpop_lambda=5., rdpo_alpha=.1, chi_po_clip=4.)
    assert not said


# Properties

nats = st.floats(-50, 50, allow_nan=False, width=32)
lengths = st.integers(1, 50)


@st.composite
def made_pairs(draw, B=st.integers(1, 6)):
    n = draw(B)
    column = lambda s: torch.tensor([draw(s) for _ in range(n)], dtype=torch.float64)
    return PairLogps(*(column(nats) for _ in range(4)), *(column(lengths) for _ in range(2)))


def bound(name, **kw):
    (f, _), = bind_losses(name, **(dict(beta=.1, label_smoothing=SMOOTHED.get(name, 0.)) | kw))
    return f


def permuted(p, order): return PairLogps(*(getattr(p, k)[order] for k in ('chosen', 'rejected', 'ref_chosen', 'ref_rejected', 'chosen_len', 'rejected_len')))
def shifted(p, **by): return PairLogps(*(getattr(p, k)+by.get(k, 0.) for k in ('chosen', 'rejected', 'ref_chosen', 'ref_rejected', 'chosen_len', 'rejected_len')))


NEGATIVE = ('orpo', 'simpo')  # read log-probs themselves, which are below 0
ordinary = [n for n in losses if n not in NEGATIVE]


@pytest.mark.parametrize('name', ordinary)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(p=made_pairs(), data=st.data())
def test_order_of_the_batch_does_not_matter(name, p, data):
    order = torch.tensor(data.draw(st.permutations(range(len(p.chosen)))))
    a, b = bound(name)(p).mean(), bound(name)(permuted(p, order)).mean()
    assert torch.isclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', [n for n in losses if n not in (*NEGATIVE, 'sft')])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(p=made_pairs(), by=nats)
def test_only_the_move_from_the_reference_counts(name, p, by):
    "Policy and reference shifted alike: the same loss. (For aot sorting sees shifted margins, so both answers are shifted.)"
    q = shifted(p, chosen=by, ref_chosen=by, rejected=by, ref_rejected=by)
    assert torch.allclose(bound(name)(p), bound(name)(q), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', ['sigmoid', 'hinge', 'robust', 'cdpo', 'exo_pair', 'discopop', 'dpop', 'rdpo', 'aot'])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(p=made_pairs(), by=st.floats(0, 20))
def test_a_loss_of_the_difference_ignores_a_common_shift(name, p, by):
    q = shifted(p, chosen=by, rejected=by) if name != 'dpop' else shifted(p, rejected=by, ref_rejected=by)
    assert torch.allclose(bound(name, discopop_tau=.5)(p), bound(name, discopop_tau=.5)(q), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', ['sigmoid', 'hinge', 'robust', 'sigmoid_norm', 'bco_pair', 'apo_zero', 'dpop', 'rdpo', 'chi_po'])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(p=made_pairs(), by=st.floats(.01, 20))
def test_falls_as_the_chosen_answer_rises_and_the_rejected_one_falls(name, p, by):
    f = bound(name)
    assert (f(shifted(p, chosen=by)) <= f(p)+1e-12).all() and (f(shifted(p, rejected=-by)) <= f(p)+1e-12).all()


@pytest.mark.parametrize('name', ['sigmoid', 'hinge', 'robust', 'cdpo', 'exo_pair', 'nca_pair', 'bco_pair', 'apo_zero', 'apo_down', 'aot', 'aot_unpaired', 'dpop'])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(p=made_pairs(), k=st.sampled_from([.25, .5, 2., 4.]))
def test_beta_and_nats_are_exchangeable(name, p, k):
    "β·k on moves divided by k is the same loss: only β times nats counts."
    six = lambda s: PairLogps(p.chosen*s, p.rejected*s, p.ref_chosen*s, p.ref_rejected*s, p.chosen_len, p.rejected_len)
    assert torch.allclose(bound(name, beta=.1)(p), bound(name, beta=.1*k)(six(1/k)), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64], ids=['fp32', 'bf16', 'fp64'])
@pytest.mark.parametrize('name', list(losses))
def test_finite_at_ten_thousand_nats(name, dtype):
    far = 1e4
    sides = [(w, l) for w in (far, 0., -far) for l in (far, 0., -far)]
    dw, dl = (torch.tensor(v, dtype=dtype) for v in zip(*sides))
    ref = torch.full_like(dw, -far if name in NEGATIVE else 0.)
    start = ref.clone()
    if name in NEGATIVE: dw, dl = dw-far-1, dl-far-1  # log-probs are below 0
    c, r = dw.clone().requires_grad_(), dl.clone().requires_grad_()
    n = torch.ones_like(dw)
    loss = bound(name)(PairLogps(c, r, start, start, 5*n, 4*n))
    grads = torch.autograd.grad(loss.sum(), (c, r), allow_unused=True)
    assert loss.isfinite().all(), loss
    assert all(g is None or g.isfinite().all() for g in grads), grads


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=['fp32', 'bf16', 'fp16', 'fp64'])
@pytest.mark.parametrize('div, a', DIVERGENCES[1:], ids=lambda x: str(x))
def test_divergences_never_give_nan(div, a, dtype):
    d = torch.tensor([1e4, 500., 89., 1., 0., -1., -89., -500., -1e4], dtype=dtype).requires_grad_()
    s = score_function(div, a)(d)
    g, = torch.autograd.grad(s.sum(), d)
    assert s.isfinite().all() and g.isfinite().all(), (s, g)
    assert not (s[:, None]-s).isnan().any()
    assert (s.diff() <= 0).all()  # increasing in the log-ratio


# A new loss

def test_a_new_loss_is_a_page_and_a_record(tmp_path):
    "As CONTRIBUTING says: a page that exports the function, and a record with its import. Registry, objective, config, trainer and gallery then know it."
    repo = copy_checkout(tmp_path/'repo')
    add_cubic(repo/'nbs/losses')
    run('nbdev_export', cwd=repo)
    code = ("from dpo_nb import DPOConfig, DPOTrainer, load_toy_model, load_toy_pairs, load_toy_tokenizer\n"
            "from dpo_nb.losses.objective import Objective\n"
            "from dpo_nb.losses.registry import hyperparameters, losses, margin_losses, records, unread\n"
            "assert records['cubic'].fields == ('beta', 'cubic_power') and records['cubic'].page == 'losses/cubic'\n"
            "assert 'cubic_power' in hyperparameters and 'cubic' in margin_losses and unread('sigmoid', ['cubic_power']) == dict(cubic_power=['cubic'])\n"
            "assert Objective('cubic', cubic_power=2.).bound[0][0].keywords == dict(beta=.1, cubic_power=2.)\n"
            "args = DPOConfig('out', loss_type='cubic', max_steps=2, logging_steps=1, per_device_train_batch_size=2, bf16=False, report_to='none', save_strategy='no')\n"
            "t = DPOTrainer(load_toy_model(), args=args, train_dataset=load_toy_pairs()['train'].select(range(8)), processing_class=load_toy_tokenizer()); t.train()\n"
            "print('first loss', t.state.log_history[0]['loss'])")
    done = run(sys.executable, '-c', code, cwd=repo)
    assert 'first loss 1.0' in done.stdout, done.stdout[-500:]
    for page in ('losses/registry', 'losses/objective', 'explain/gallery'): run('nbdev_test', '--path', f'nbs/{page}.ipynb', cwd=repo)


def add_cubic(folder):
    "A page and a record, and nothing else: a loss |1 − βΔ|^k with a hyperparameter of its own."
    def cell(kind, text):
        more = dict(execution_count=None, outputs=[]) if kind == 'code' else {}
        return dict(cell_type=kind, id=f'c{zlib.crc32(text.encode()):08x}'[:8], metadata={}, source=text) | more
    page = json.loads((folder/'sigmoid.ipynb').read_text(encoding='utf-8'))
    page['cells'] = [cell('markdown', '# Cubic\n\n> A loss for this test.'), cell('code', '#| default_exp losses.cubic'),
                     cell('code', '#| export\nfrom dpo_nb.pairs import PairLogps'),
                     cell('code', "#| export\ndef cubic_loss(p, *, beta=0.1, cubic_power=3.):\n    'A made-up loss.'\n    return (1-beta*p.delta).abs()**cubic_power")]
    (folder/'cubic.ipynb').write_text(json.dumps(page), encoding='utf-8')
    registry = json.loads((folder/'registry.ipynb').read_text(encoding='utf-8'))
    for c in registry['cells']:
        text = ''.join(c['source'])
        if text.startswith('#| export\nimport'): c['source'] = text + '\nfrom dpo_nb.losses.cubic import cubic_loss'
        if text.startswith('#| exports\nrecords = dict('):
            assert text.endswith('\n)')
            c['source'] = text.removesuffix(')') + "    cubic=LossRecord(cubic_loss, '$|1-z|^k$', margin=True, divergence=False, start=1., use='a test'),\n)"
    (folder/'registry.ipynb').write_text(json.dumps(registry), encoding='utf-8')
