#!/usr/bin/env python
"""Time what a user waits for, and print it as an entry for LOG.md.

    python scripts/bench.py [--steps 50] [--repeat 3]

The smallest of the repeats is reported: what the work takes when nothing else runs on the machine.
"""
import argparse, datetime as dt, json, os, platform, subprocess, sys, tempfile, time
from importlib.metadata import version
from pathlib import Path

from project import settings

BIN = Path(sys.executable).parent
SHOWN = ('torch', 'transformers', 'datasets', 'accelerate', 'peft')


def seconds(*args):
    "Wall time of a command, which must succeed."
    start = time.perf_counter()
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode: sys.exit(f'{args} failed\n{done.stderr[-3000:]}')
    return time.perf_counter() - start


def train(steps):
    "The embedded job for `steps` steps: seconds in all, and what the trainer itself logged."
    with tempfile.TemporaryDirectory() as out:
        wall = seconds(BIN/'dpo_nb', 'train', '--max_steps', steps, '--output_dir', Path(out)/'model')
        logs = json.loads((Path(out)/'model'/'trainer_state.json').read_text())['log_history']
    return wall, {k: v for entry in logs for k, v in entry.items()}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--steps', type=int, default=50)
    ap.add_argument('--repeat', type=int, default=3)
    args = ap.parse_args()
    best = lambda *command: min(seconds(*command) for _ in range(args.repeat))
    start = best(sys.executable, '-c', 'pass')
    rows = [('`import dpo_nb`', best(sys.executable, '-c', 'import dpo_nb') - start, 's'),
            ('`dpo_nb --help`', best(BIN/'dpo_nb', '--help'), 's')]
    runs = [train(args.steps) for _ in range(args.repeat)]
    wall, logs = min(runs, key=lambda r: r[0])
    rows += [(f'`dpo_nb train --max_steps {args.steps}`, all of it', wall, 's'), ('its training loop', logs['train_runtime'], 's'),
             ('steps', logs['train_steps_per_second'], '/s')]
    if 'num_tokens' in logs: rows.append(('tokens', logs['num_tokens']/logs['train_runtime'], '/s'))
    print(f"## {dt.date.today()} · dpo_nb {settings()['version']} · {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n")
    print(', '.join(f'{p} {version(p)}' for p in SHOWN) + f'; the smallest of {args.repeat}.\n')
    print('| what | value |\n|---|---|')
    for what, value, unit in rows: print(f'| {what} | {value:.3g} {unit} |')


if __name__ == '__main__': main()
