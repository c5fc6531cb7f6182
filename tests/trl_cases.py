"The settings and batches on which losses are compared with TRL 1.16.0, live and recorded."
import random

import torch

DIFFERENCE = ('sigmoid', 'hinge', 'exo_pair', 'robust', 'discopop')  # read s_w − s_l
WITH_DIVERGENCE = (*DIFFERENCE, 'ipo', 'sigmoid_norm', 'sft')
OTHERS = ('nca_pair', 'bco_pair', 'sppo_hard', 'aot', 'aot_unpaired', 'apo_zero', 'apo_down')
ALL = WITH_DIVERGENCE + OTHERS
DIVERGENCES = [dict(f_divergence_type='forward_kl'), dict(f_divergence_type='js_divergence'),
               *(dict(f_divergence_type='alpha_divergence', f_alpha_divergence_coef=a) for a in (0.3, 0.5, 1.0, 2.0))]
smoothing = lambda loss: dict(label_smoothing=0.1) if loss == 'exo_pair' else {}

CASES = [dict(loss_type=l) | smoothing(l) | kw for l in ALL for kw in (dict(), dict(beta=0.5))]
CASES += [dict(loss_type=l) | smoothing(l) | kw for l in WITH_DIVERGENCE for kw in DIVERGENCES]
CASES += [dict(loss_type=l, label_smoothing=e) for l in ('robust', 'exo_pair', 'aot', 'aot_unpaired') for e in (0.001, 0.3)]
CASES += [dict(loss_type=l, ld_alpha=a) | smoothing(l) for l in ALL for a in (0., 0.4)]
CASES += [dict(loss_type=l, use_weighting=True) | smoothing(l) for l in ALL if l not in ('aot', 'aot_unpaired', 'sft', 'hinge')]  # there TRL refuses or crashes
CASES += [dict(loss_type='discopop', discopop_tau=t) for t in (0.02, 0.5)]
CASES += [dict(loss_type=['sigmoid', 'bco_pair', 'sft'], loss_weights=[0.8, 0.2, 1.0]), dict(loss_type=['ipo', 'aot'], loss_weights=[1.0, 3.0]),
          dict(loss_type=['sigmoid', 'apo_zero'], use_weighting=True, ld_alpha=0.5)]


def batch(seed, B, T=7, dtype=torch.float32):
    "Token log-probs of policy and reference and log Σp², each `[2B,T-1]`, and the completion mask `[2B,T]`; from Python's generator, so that it never changes."
    rng = random.Random(seed)
    rows = lambda draw: torch.tensor([[draw() for _ in range(T-1)] for _ in range(2*B)], dtype=dtype)
    logps = rows(lambda: -3*rng.random())
    ref = logps + rows(lambda: rng.gauss(0, .5))
    log_p2 = rows(lambda: -2*rng.random())
    mask = torch.zeros(2*B, T, dtype=torch.long)
    for row in mask:
        start, n = rng.randint(1, 3), rng.randint(1, 4)
        row[start:start+n] = 1
    return logps, ref, log_p2, mask


SEEDS = ((1, 1), (2, 3))  # (seed, pairs)
