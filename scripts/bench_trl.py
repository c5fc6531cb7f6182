#!/usr/bin/env python
"""Train the same pairs with dpo_nb and with TRL, by turns, and write down what each took.

    python scripts/bench_trl.py [--cases toy lora ...] [--repeat 3] [--out FILE]     # python scripts/bench_trl.py --list shows the cases

Each run is a process of its own, so that each side has its own peak of memory. Tokens are counted as both count them: every token that
is not padding, the prompt once per answer. Times are of the training steps alone, without loading. On a machine that does other work too,
seconds of the processor say more than seconds of the clock; both are written. SmolLM2 comes from scripts/smollm2.py.
"""
import argparse, datetime as dt, json, os, platform, random, statistics, subprocess, sys, tempfile, time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHATS = ROOT.parent/'shared'/'data'/'dpo_en_demo.jsonl'  # 300 real conversations, if they are there
SHOWN = ('torch', 'transformers', 'trl', 'peft', 'accelerate', 'datasets')

TOY = dict(model='toy', data='reviews', batch=8, steps=12, max_length=1024)
SMOL = dict(model='smollm2', data='chats', batch=2, steps=2, max_length=1024)
MADE = dict(model='made', data='made', batch=4, steps=4, max_length=8192, prompt=.5, length=256, vocab=8000)
CASES = {
    'toy': TOY, 'toy, LoRA': TOY | dict(lora=True), 'toy, 3 epochs': TOY | dict(epochs=3, steps=-1, rows=32), 'toy, batch 2': TOY | dict(batch=2),
    'SmolLM2, bf16': SMOL | dict(bf16=True), 'SmolLM2, bf16, LoRA': SMOL | dict(bf16=True, lora=True),
    'SmolLM2, fp32': SMOL, 'SmolLM2, fp32, LoRA': SMOL | dict(lora=True), 'SmolLM2, own pairs, bf16': SMOL | dict(bf16=True, data='helpful'),
    **{f'prompt {p:.0%}': MADE | dict(prompt=p) for p in (0., .3, .6, .9)},
    **{f'length {n}': MADE | dict(length=n, batch=1) for n in (128, 512, 2048, 4096)},
    **{f'vocabulary {v//1000}k': MADE | dict(vocab=v) for v in (8_000, 32_000, 128_000, 256_000)},
    **{f'batch {b}': MADE | dict(batch=b) for b in (1, 8)}, **{f'epochs {n}': MADE | dict(epochs=n, steps=-1, rows=8) for n in (1, 2, 3)},
}


def made_pairs(c):
    "Nonsense of the right size: words of one token each, the prompt a given share."
    from dpo_nb.toy import load_toy_tokenizer
    words, rng = 'the a was and not good bad soup bread'.split(), random.Random(0)
    n = max(1, round(c['length']*c['prompt']))
    text = lambda k: ' '+' '.join(rng.choice(words) for _ in range(k))
    assert len(load_toy_tokenizer()(text(50))['input_ids']) < 60
    return [dict(prompt=text(n), chosen=text(c['length']-n), rejected=text(c['length']-n)) for _ in range(32)]


def load(c, folder):
    "(folder of the model, tokenizer, rows) of a case; a model that is made is written to `folder`, because TRL loads its reference from there."
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from dpo_nb.toy import load_toy_pairs, load_toy_tokenizer, toy_path
    if c['data'] == 'reviews': rows = load_toy_pairs()['train'].to_list()
    elif c['data'] == 'made': rows = made_pairs(c)
    else: rows = [json.loads(l) for l in (CHATS if c['data'] == 'chats' else ROOT/'dpo_nb'/'assets'/'helpful_mini'/'train.jsonl').read_text(encoding='utf-8').splitlines()]
    rows = [{k: r[k] for k in ('prompt', 'chosen', 'rejected') if k in r} for r in rows if all(r.get(k) for k in ('prompt', 'chosen', 'rejected'))]
    if c['model'] == 'toy': return toy_path(), load_toy_tokenizer(), rows
    if c['model'] == 'made':
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, vocab_size=c['vocab'],
                                     max_position_embeddings=8192, tie_word_embeddings=True)).save_pretrained(folder)
        return folder, load_toy_tokenizer(), rows
    sys.path.insert(0, str(ROOT/'scripts'))
    from smollm2 import smollm2_folder
    smollm2 = str(smollm2_folder())
    return smollm2, AutoTokenizer.from_pretrained(smollm2), rows


def kind_of(op):
    "What an operation of PyTorch is, in words."
    if 'scaled_dot_product' in op: return 'attention'
    if op.removeprefix('aten::') in ('mm', 'addmm', 'bmm', 'baddbmm', 'addmm_'): return 'matrix products'
    if 'adam' in op.lower(): return 'optimizer'
    return 'copies and casts' if op in ('aten::copy_', 'aten::cat', 'aten::index', 'aten::index_select') else 'element by element, and the rest'


def matrix_rate(dtype, n=8):
    "Operations per second of the clock that this machine reaches on a matrix of SmolLM2's."
    import torch
    a, w = torch.randn(1024, 576).to(dtype), torch.randn(1536, 576).to(dtype)
    def once():
        start = time.perf_counter(); torch.nn.functional.linear(a, w)
        return time.perf_counter()-start
    return 2*1024*576*1536/min(once() for _ in range(n))


def work(side, c, profile=False):
    "One run in this process; prints a line of JSON."
    import contextlib, resource, warnings
    warnings.filterwarnings('ignore')
    import datasets, torch, transformers
    from transformers import TrainerCallback
    transformers.utils.logging.set_verbosity_error(); transformers.utils.logging.disable_progress_bar(); datasets.disable_progress_bars()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', os.cpu_count())))
    if side == 'trl': import trl as lib
    else: import dpo_nb as lib

    class Clock(TrainerCallback):
        cpu = wall = 0.
        def on_step_begin(self, *a, **k): self.start = time.process_time(), time.perf_counter()
        def on_step_end(self, *a, **k):
            self.cpu, self.wall = self.cpu+time.process_time()-self.start[0], self.wall+time.perf_counter()-self.start[1]

    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer, rows = load(c, os.path.join(folder, 'made'))
        args = lib.DPOConfig(os.path.join(folder, 'out'), use_cpu=True, bf16=c.get('bf16', False), report_to='none', save_strategy='no', disable_tqdm=True, logging_steps=1, seed=1,
                             per_device_train_batch_size=c['batch'], max_steps=c['steps'], num_train_epochs=c.get('epochs', 1), max_length=c['max_length'])
        peft = None
        if c.get('lora'):
            from peft import LoraConfig
            peft = LoraConfig(r=16, lora_alpha=32, target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj'], task_type='CAUSAL_LM')
        clock, data = Clock(), datasets.Dataset.from_list(rows[:c.get('rows', len(rows))])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        t = lib.DPOTrainer(model, args=args, train_dataset=data, processing_class=tokenizer, peft_config=peft, callbacks=[clock])
        seen, step = [0, 0], t.training_step
        def counted(model, inputs, *a, **k):
            if side == 'dpo_nb':  # places computed, and tokens of answers
                from dpo_nb.model.prefix_sharing import pack, shares_prefix
                p = pack({k: inputs[k] for k in ('input_ids', 'attention_mask')}) if shares_prefix(model) else None
                seen[0] += (inputs if p is None else p.inputs)['input_ids'].numel()
            seen[1] += int(inputs['completion_mask'].sum())
            return step(model, inputs, *a, **k)
        t.training_step = counted
        with contextlib.redirect_stdout(open(os.devnull, 'w')), torch.profiler.profile() if profile else contextlib.nullcontext() as p: t.train()
    logs = [h for h in t.state.log_history if 'loss' in h]
    unit = 1e9/1024 if sys.platform != 'darwin' else 1e9  # Linux counts KiB, macOS bytes
    share = {}
    for e in p.key_averages() if profile else (): share[kind_of(e.key)] = share.get(kind_of(e.key), 0) + e.self_cpu_time_total/1e6
    print(json.dumps(dict(profile={k: round(x, 2) for k, x in share.items()}, computed=seen[0], scored=seen[1], rate=matrix_rate(torch.bfloat16 if c.get('bf16') else torch.float32), tokens=logs[-1]['num_tokens'], cpu=clock.cpu, wall=clock.wall, losses=[h['loss'] for h in logs],
                          peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/unit, before=before/unit)))


def side_of(side, name, *flags):
    "One run in a process of its own."
    done = subprocess.run([sys.executable, __file__, '--worker', side, name, *flags], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env=os.environ | dict(HF_HUB_OFFLINE='1', PYTHONPATH=str(ROOT)))
    if done.returncode: sys.exit(f'{side}, {name!r} failed\n{done.stderr[-3000:]}')
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(name, repeat):
    "Both sides by turns; medians, and how many times dpo_nb's throughput and memory are TRL's."
    runs = {'dpo_nb': [], 'trl': []}
    for i in range(repeat):
        for side in (('dpo_nb', 'trl'), ('trl', 'dpo_nb'))[i%2]: runs[side].append(side_of(side, name))
    def med(side, f): return statistics.median(map(f, runs[side]))
    def range_of(f): return [round(x, 2) for x in (min(f(a)/f(b) for a, b in pairs), max(f(a)/f(b) for a, b in pairs))]
    pairs = list(zip(runs['dpo_nb'], runs['trl']))  # one turn of each
    ranges = {'tokens/s': range_of(lambda r: r['tokens']/r['wall']), 'tokens/cpu s': range_of(lambda r: r['tokens']/r['cpu']), 'peak GB': range_of(lambda r: r['peak'])}
    out = {side: {'tokens/cpu s': round(med(side, lambda r: r['tokens']/r['cpu']), 1), 'tokens/s': round(med(side, lambda r: r['tokens']/r['wall']), 1),
                  'peak GB': round(med(side, lambda r: r['peak']), 3)} for side in runs}
    assert runs['trl'][0]['tokens'] == runs['dpo_nb'][0]['tokens'], 'the two sides did not train on the same tokens'
    off = max(abs(a-b) for a, b in zip(runs['trl'][0]['losses'], runs['dpo_nb'][0]['losses']))
    times = {k: round(out['dpo_nb'][k]/out['trl'][k], 2) for k in out['trl']}
    own = runs['dpo_nb']
    counts = dict(computed=own[0]['computed'], scored=own[0]['scored'], rate=statistics.median(r['rate'] for r in own))
    return dict(case=CASES[name], runs=repeat, **counts, tokens=runs['trl'][0]['tokens'], losses_differ_by=round(off, 6), **out, times=times, ranges=ranges)


def machine():
    "What the numbers were measured on."
    try: model = next(l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
    except (OSError, StopIteration): model = platform.processor()
    return dict(cpu=model, cores=os.cpu_count(), threads=int(os.environ.get('OMP_NUM_THREADS', os.cpu_count())), load=[round(x, 1) for x in os.getloadavg()],
                python=platform.python_version(), **{p: version(p) for p in SHOWN})


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--cases', nargs='+', default=['toy', 'toy, LoRA', 'toy, 3 epochs'], help='names, or beginnings of names; all: every case, an hour or two')
    ap.add_argument('--repeat', type=int, default=5, help='runs of each side, by turns; medians are reported, and the range of the turns')
    ap.add_argument('--out', type=Path, help='a JSON file; cases that it already has and that are not run again stay')
    ap.add_argument('--profile', action='store_true', help='one more run of each side and case, to see what its time goes to')
    ap.add_argument('--list', action='store_true')
    ap.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.list: return print('\n'.join(CASES))
    if args.worker: return work(args.worker[0], CASES[args.worker[1]], args.profile)
    names = [n for n in CASES if args.cases == ['all'] or any(n == c or c not in CASES and n.startswith(c) for c in args.cases)]
    if not names: sys.exit(f'no case is called {args.cases}; choose from {list(CASES)}')
    old = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    for name in names:
        row = compare(name, args.repeat) | dict(date=str(dt.date.today()), machine=machine())
        if args.profile: row['profile'] = {side: (r := side_of(side, name, '--profile'))['profile'] | dict(seconds=r['wall']) for side in ('dpo_nb', 'trl')}
        old = dict(rows=old.get('rows', {}) | {name: row})
        if args.out: args.out.write_text(json.dumps(old, indent=1)+'\n')
        t, turns = row['times'], '{} to {}'.format(*row['ranges']['tokens/s'])
        print(f"{name:26s} {row['dpo_nb']['tokens/cpu s']:8.0f} against {row['trl']['tokens/cpu s']:8.0f} tokens per CPU second, {t['tokens/cpu s']:.2f}× "
              f"(clock {t['tokens/s']:.2f}×, turns {turns}); peak {row['dpo_nb']['peak GB']:.2f} against {row['trl']['peak GB']:.2f} GB, {t['peak GB']:.2f}×", flush=True)


if __name__ == '__main__': main()
