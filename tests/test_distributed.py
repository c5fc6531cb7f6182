"Two processes on a CPU give what one process gives for the same global batch; scattered weights give what whole ones give."
import json, math, os, subprocess, sys
from pathlib import Path

import pytest, torch
from transformers import AutoModelForCausalLM

import distributed_run
from distributed_run import RUNS, history, one_batch, step
from test_trl_trainer import tiny  # noqa: F401, a fixture
from dpo_nb.reference.reference import frozen_copy

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def two(tiny, tmp_path_factory):
    "What the two processes saw."
    out = tmp_path_factory.mktemp('two')
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', distributed_run.__file__, tiny, str(out)],
                          capture_output=True, text=True, timeout=400, env=os.environ | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1'))
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((out/f'rank{i}.json').read_text()) for i in (0, 1)], out


@pytest.mark.parametrize('name', RUNS)
def test_the_loss_curve_and_the_metrics_are_those_of_one_process(name, two, tiny, tmp_path):
    if 'resume' in RUNS[name]: want = two[0][0][RUNS[name]['resume']]
    else: want = history(Path(tiny), tmp_path, 4, name)
    got = two[0][0][name]
    assert [h['step'] for h in got] == [h['step'] for h in want] and any('loss' in h for h in got)
    for a, b in zip(got, want):
        for k in b:
            if k.endswith(('runtime', 'per_second', 'total_flos')) or k == 'train_loss': continue
            assert math.isclose(a[k], b[k], rel_tol=1e-4, abs_tol=2e-5), (a['step'], k, a[k], b[k])


def test_both_processes_log_the_same(two):
    (a, b), _ = two
    for name in RUNS:
        for x, y in zip(a[name], b[name]):
            assert {k: v for k, v in x.items() if '/' in k or k == 'num_tokens'} == {k: v for k, v in y.items() if '/' in k or k == 'num_tokens'}


def test_weights_scattered_by_fully_shard(two, tiny):
    (a, b), out = two
    policy = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    logps, loss = step(policy.train(), frozen_copy(policy), one_batch())
    for seen in (a['sharded'], b['sharded']):
        assert seen['logps'] == pytest.approx(logps, rel=1e-5) and seen['loss'] == pytest.approx(loss, rel=1e-5)
        assert seen['grads'] == {k: pytest.approx(w.grad.norm().item(), rel=1e-3, abs=1e-6) for k, w in policy.named_parameters()}
    whole = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    for w in whole.parameters(): w.data.zero_()
    whole.load_state_dict(torch.load(out/'sharded.pt'))
    assert all(torch.equal(x, y) for x, y in zip(whole.parameters(), policy.parameters()))
