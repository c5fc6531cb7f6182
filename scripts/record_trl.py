"""Write down what TRL 1.16.0 computes: tests/trl_golden.json, losses and gradients on made-up log-probs.

Needs TRL. The recorded numbers let tests/test_losses.py compare where TRL cannot be installed. Run: python scripts/record_trl.py"""
import importlib.metadata, json, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tests'))
from trl_cases import CASES, SEEDS, batch
from trl_stub import trl_loss

digits = lambda x: float(f'{x:.8g}')


def record():
    rows = []
    for case in CASES:
        for seed, B in SEEDS:
            logps, ref, log_p2, mask = batch(seed, B)
            loss, grad, metrics = trl_loss(logps, ref, mask, log_p2, **case)
            rewards = {k: digits(metrics[k]) for k in ('rewards/chosen', 'rewards/margins', 'logps/chosen')}
            rows.append(dict(case=case, seed=seed, B=B, loss=digits(loss.item()), grad=[digits(g) for g in grad.flatten().tolist()], **rewards))
    return rows


if __name__ == '__main__':
    rows = record()
    lines = ',\n'.join(json.dumps(r, separators=(',', ':')) for r in rows)
    head = json.dumps(dict(trl=importlib.metadata.version('trl'), torch=importlib.metadata.version('torch').split('+')[0]))
    (ROOT/'tests'/'trl_golden.json').write_text(f'{{"versions":{head},\n"rows":[\n{lines}\n]}}\n', encoding='utf-8')
    print(len(rows), 'cases recorded')
