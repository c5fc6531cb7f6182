"""Every loss once more, written apart from the package: plain Python floats, one pair at a time, with the derivatives worked out by hand.

Sources: the papers' formulas as the pages cite them. Nothing here imports dpo_nb or torch."""
from math import exp, expm1, log, log1p


def sigma(t): return 1/(1+exp(-t)) if t >= 0 else exp(t)/(1+exp(t))
def ell(t): return log1p(exp(-t)) if t >= 0 else log1p(exp(t))-t  # −log σ(t)
def dsigma(t): return sigma(t)*sigma(-t)


def divergence(name, a):
    "Score of a log-ratio and its slope."
    if name == 'reverse_kl' or name == 'alpha_divergence' and a == 1: return lambda d: (d, 1.)
    if name == 'forward_kl': return lambda d: (1-exp(-d), exp(-d))
    if name == 'js_divergence': return lambda d: (log(2)-ell(d), sigma(-d))
    if name == 'alpha_divergence': return lambda d: (expm1((a-1)*d)/(a-1), exp((a-1)*d))
    raise ValueError(name)


# Losses of the difference z = β(s_w − s_l): value and derivative in z.
def sigmoid(z, eps, tau): return ell(z), -sigma(-z)
def hinge(z, eps, tau): return (1-z, -1.) if z < 1 else (0., 0.)
def robust(z, eps, tau): return ((1-eps)*ell(z)-eps*ell(-z))/(1-2*eps), (-(1-eps)*sigma(-z)-eps*sigma(z))/(1-2*eps)
def cdpo(z, eps, tau): return (1-eps)*ell(z)+eps*ell(-z), -(1-eps)*sigma(-z)+eps*sigma(z)
def exo_pair(z, eps, tau):
    value = sigma(z)*(-ell(z)-log(1-eps)) + sigma(-z)*(-ell(-z)-log(eps))
    return value, dsigma(z)*(z-log((1-eps)/eps))
def discopop(z, eps, tau):
    g = sigma(z/tau)
    return (1-g)*ell(z)+g*exp(-z), g*(1-g)/tau*(exp(-z)-ell(z))-(1-g)*sigma(-z)-g*exp(-z)


OF_THE_DIFFERENCE = dict(sigmoid=sigmoid, hinge=hinge, robust=robust, cdpo=cdpo, exo_pair=exo_pair, discopop=discopop)
PER_TOKEN = ('ipo', 'sigmoid_norm')
WITH_DIVERGENCE = {*OF_THE_DIFFERENCE, *PER_TOKEN, 'dpop', 'rdpo', 'sft'}


def one(name, c, r, rc, rr, n_w, n_l, *, beta, eps=0., tau=0.05, div='reverse_kl', a=0.5, gamma=0.5, lam=50., alpha=0.01, clip=None):
    "(loss, ∂/∂log π(y_w), ∂/∂log π(y_l)) of one pair; for sft, orpo and simpo the reference has no say."
    dw, dl = c-rc, r-rr
    (sw, kw), (sl, kl) = map(divergence(div, a), (dw, dl))
    rw, rl = beta*dw, beta*dl
    if name in OF_THE_DIFFERENCE:
        v, d = OF_THE_DIFFERENCE[name](beta*(sw-sl), eps, tau)
        return v, d*beta*kw, -d*beta*kl
    if name == 'ipo':
        gap = sw/n_w-sl/n_l-1/(2*beta)
        return gap**2, 2*gap*kw/n_w, -2*gap*kl/n_l
    if name == 'sigmoid_norm':
        z = beta*(sw/n_w-sl/n_l)
        return ell(z), -sigma(-z)*beta*kw/n_w, sigma(-z)*beta*kl/n_l
    if name == 'nca_pair': return ell(rw)+.5*ell(-rw)+.5*ell(-rl), beta*(1.5*sigma(rw)-1), .5*beta*sigma(rl)
    if name == 'bco_pair': return ell(rw)+ell(-rl), -beta*sigma(-rw), beta*sigma(rl)
    if name == 'sppo_hard': return (dw-.5/beta)**2+(dl+.5/beta)**2, 2*(dw-.5/beta), 2*(dl+.5/beta)
    if name == 'apo_zero': return 1-sigma(rw)+sigma(rl), -beta*dsigma(rw), beta*dsigma(rl)
    if name == 'apo_down': return sigma(rw)+1-sigma(rw-rl), beta*(dsigma(rw)-dsigma(rw-rl)), beta*dsigma(rw-rl)
    if name == 'cal_dpo':
        v, gw, gl = one('sppo_hard', c, r, rc, rr, n_w, n_l, beta=beta)
        return v+ell(dw-dl), gw-sigma(-(dw-dl)), gl+sigma(-(dw-dl))
    if name == 'dpop':
        off = dw < 0
        z = beta*(sw-sl-lam*max(0., -dw))
        return ell(z), -sigma(-z)*beta*(kw+lam*off), sigma(-z)*beta*kl
    if name == 'rdpo':
        z = beta*(sw-sl)+alpha*(n_w-n_l)
        return ell(z), -sigma(-z)*beta*kw, sigma(-z)*beta*kl
    if name == 'chi_po':
        z = beta*(exp(dw)+dw-exp(dl)-dl)
        if clip is not None and abs(z) > clip: return ell(clip if z > 0 else -clip), 0., 0.
        return ell(z), -sigma(-z)*beta*(exp(dw)+1), sigma(-z)*beta*(exp(dl)+1)
    if name == 'simpo':
        z = beta*(c/n_w-r/n_l)-gamma
        return ell(z), -sigma(-z)*beta/n_w, sigma(-z)*beta/n_l
    if name == 'orpo':
        lw, ll = c/n_w, r/n_l
        z = lw-log(-expm1(lw))-ll+log(-expm1(ll))
        return -lw+beta*ell(z), -1/n_w-beta*sigma(-z)/-expm1(lw)/n_w, beta*sigma(-z)/-expm1(ll)/n_l
    raise ValueError(f'no closed form for {name}')


def batch(name, rows, **kw):
    "(mean loss, [∂/∂log π(y_w)], [∂/∂log π(y_l)]) of the mean over `rows` of six numbers; here the batch may matter."
    B, beta, eps = len(rows), kw['beta'], kw.get('eps', 0.)
    if name == 'sft':
        total = sum(n_w for *_, n_w, _ in rows)
        return -sum(c for c, *_ in rows)/total, [-1/total]*B, [0.]*B
    if name in ('aot', 'aot_unpaired'):
        rank = lambda v: sorted(range(B), key=v.__getitem__)
        up, down = ([c-r for c, r, *_ in rows], [rc-rr for _, _, rc, rr, *_ in rows]) if name == 'aot' else ([r[0]-r[2] for r in rows], [r[1]-r[3] for r in rows])
        loss, gw, gl = 0., [0.]*B, [0.]*B
        for i, j in zip(rank(up), rank(down)):
            v, d = cdpo(beta*(up[i]-down[j]), eps, 0)
            loss += v/B
            gw[i] += d*beta/B
            gl[i if name == 'aot' else j] -= d*beta/B
        return loss, gw, gl
    each = [one(name, *row, **kw) for row in rows]
    return tuple(sum(e[0] for e in each)/B if k == 0 else [e[k]/B for e in each] for k in range(3))
