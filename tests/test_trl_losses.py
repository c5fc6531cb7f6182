"Every loss and option of TRL 1.16.0 in training: three steps of the toy model beside TRL, and every number of the log."
import pytest

import dpo_nb
from dpo_nb.toy import load_toy_pairs
from test_trl_parity import assert_same, pytestmark, train  # noqa: F401
from trl_cases import ALL, DIVERGENCES, WITH_DIVERGENCE, smoothing

CASES = [dict(loss_type=l) | smoothing(l) for l in ALL]
CASES += [dict(loss_type=l) | smoothing(l) | kw for l in WITH_DIVERGENCE for kw in (DIVERGENCES[0], DIVERGENCES[1], DIVERGENCES[2])]
CASES += [dict(loss_type=l, label_smoothing=.2) for l in ('robust', 'aot', 'aot_unpaired')]
CASES += [dict(loss_type=l, ld_alpha=.3) for l in ('sigmoid', 'ipo', 'sft', 'nca_pair', 'aot')]
CASES += [dict(loss_type=l, use_weighting=True) for l in ('sigmoid', 'ipo', 'bco_pair')]
CASES += [dict(loss_type='discopop', discopop_tau=.5), dict(loss_type=['sigmoid', 'bco_pair', 'sft'], loss_weights=[.8, .2, 1.])]


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('case', CASES, ids=lambda c: ' '.join(map(str, c.values())))
def test_three_steps_beside_trl(case, tmp_path):
    import trl
    rows = load_toy_pairs()['train'].select(range(12))
    kw = dict(max_steps=3, per_device_train_batch_size=4, gradient_checkpointing=False, learning_rate=1e-4) | case
    ours, theirs = (train(lib, tmp_path/lib.__name__, rows, **kw) for lib in (dpo_nb, trl))
    assert_same(ours, theirs)
    assert len([r for r in ours if 'loss' in r]) == 3
