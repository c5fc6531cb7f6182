#!/usr/bin/env python
"""Run every loss on every kind of data of nbs/labs/choose_a_loss.ipynb and record what the page shows.

    python scripts/choose_a_loss.py              # writes nbs/labs/choose_a_loss.json; about seven minutes of one core
    python scripts/choose_a_loss.py simpo orpo   # these again, or for the first time; the others stay

Worlds, data, hyperparameters and marks are the page's own: the cells of the page that begin with `# recorded` are executed here. Only
the training loop is another one, which trains all runs of a loss side by side; the page repeats some of them one at a time.
"""
import json, os, platform, sys, time
from importlib.metadata import version

import nbformat
import torch
from torch.func import functional_call, stack_module_state, vmap

from project import ROOT
from dpo_nb.losses.registry import losses
from dpo_nb.pairs import PairLogps
from dpo_nb.toy import expected_reward, kl

RESULT = ROOT/'nbs'/'labs'/'choose_a_loss.json'
PAGE = RESULT.with_name('choose_a_loss.ipynb')


def page():
    "What the page's recorded cells define."
    space = {}
    cells = [c.source for c in nbformat.read(PAGE, as_version=4).cells if c.cell_type == 'code']
    for source in cells:
        if source.startswith('# recorded') or source.startswith('import math'): exec(source, space)
    return space


def together(jobs, steps, lr):
    "Train many policies side by side, `jobs` being (loss function, world, pairs); `[J,steps+1,3]`: K, R, mean chosen log-ratio."
    fns, worlds, data = zip(*jobs)
    params, buffers = stack_module_state([w.policy() for w in worlds])
    params, buffers = {k: v.detach().requires_grad_() for k, v in params.items()}, {k: v[0] for k, v in buffers.items()}
    shared = worlds[0].policy()
    forward = vmap(lambda p: functional_call(shared, (p, buffers), ()))
    ref, r, n = torch.stack([w.ref_logps for w in worlds]), torch.stack([w.reward for w in worlds]), worlds[0].lengths.double()
    sizes = [len(s.prompt) for s in data]
    j = torch.arange(len(jobs)).repeat_interleave(torch.tensor(sizes))
    x, c, l = (torch.cat([s[i] for s in data]) for i in range(3))
    fixed = [t.split(sizes) for t in (ref[j, x, c], ref[j, x, l], n[c], n[l])]
    opt, out = torch.optim.Adam(params.values(), lr=lr), []
    for _ in range(steps+1):
        logps = forward(params)
        chosen, rejected = logps[j, x, c].split(sizes), logps[j, x, l].split(sizes)
        with torch.no_grad():
            up = torch.stack([(a-b).mean() for a, b in zip(chosen, fixed[0])])
            out.append(torch.stack([kl(logps, ref).mean(-1), expected_reward(logps, r).mean(-1), up], -1))
        loss = sum(f(PairLogps(*q)).mean() for f, q in zip(fns, zip(chosen, rejected, *fixed)))
        opt.zero_grad()
        loss.backward()
        opt.step()
    return torch.stack(out, 1)


def short(v):
    "Numbers of three digits; None for NaN."
    return [short(x) for x in v] if isinstance(v, list) else None if v != v else float(f'{v:.3g}')


def main():
    torch.set_num_threads(1)
    asked = sys.argv[1:]
    if unknown := set(asked) - set(losses): sys.exit(f'{sorted(unknown)} are not in the registry; choose from {sorted(losses)}')
    old = json.loads(RESULT.read_text(encoding='utf-8')) if asked and RESULT.exists() else dict(runs={}, ways={}, cpu_s=0)
    p, start, runs, ways = page(), time.process_time(), old['runs'], old['ways']
    draws = p['draws']
    worlds = [p['world'](d) for d in range(draws)]
    data = [[draw(w, d) for d, w in enumerate(worlds)] for draw in p['kinds'].values()]
    for name in asked or losses:
        betas = p['betas'](name)
        jobs = [(p['bound'](name, b), w, s) for row in data for b in betas for w, s in zip(worlds, row)]
        trails = together(jobs, p['steps'], p['lr']).view(len(data), len(betas), draws, p['steps']+1, 3)
        marks = [[[p['marks'](trails[i, k, d], worlds[d]) for d in range(draws)] for k in range(len(betas))] for i in range(len(data))]
        along = [[[p['along'](trails[i, k, d]) for d in range(draws)] for k in range(len(betas))] for i in range(len(data))]
        runs[name] = short(marks)                                      # [kind][beta][draw][mark]
        mean = torch.tensor(along, dtype=torch.float64).mean(2)        # NaN unless all draws go that far
        ways[name] = short(mean.tolist())                              # [kind][beta][K]
        print(f'{name:13} {time.process_time()-start:5.0f} s', file=sys.stderr, flush=True)
    cores = {1: 'one', 2: 'two', 4: 'four', 8: 'eight', 16: 'sixteen'}.get(os.cpu_count(), os.cpu_count())
    record = dict(made_by='scripts/choose_a_loss.py', machine=f'one thread of {cores} {platform.machine().replace("_", "-")} cores', cpu_s=round(old['cpu_s'] + time.process_time()-start),
                  versions=dict(python=platform.python_version(), torch=version('torch')), kinds=list(p['kinds']), draws=draws,
                  runs={n: runs[n] for n in losses if n in runs}, ways={n: ways[n] for n in losses if n in ways})
    lines = ',\n'.join(f'"{k}":{json.dumps(v, separators=(",", ":"))}' for k, v in record.items() if k not in ('runs', 'ways'))
    big = ',\n'.join(f'"{k}":{{\n' + ',\n'.join(f'"{n}":{json.dumps(v, separators=(",", ":"))}' for n, v in record[k].items()) + '}' for k in ('runs', 'ways'))
    RESULT.write_text(f'{{{lines},\n{big}}}\n', encoding='utf-8')


if __name__ == '__main__': main()
