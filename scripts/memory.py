#!/usr/bin/env python
"""Train models of many shapes for a few steps, each in a process of its own, and write down the peak of its memory.

    python scripts/memory.py [--cases wide deep ...] [--out nbs/guides/memory.json]     # python scripts/memory.py --list shows the cases

The models are Llamas of random weights and 20 to 135 million parameters, and SmolLM2 where scripts/smollm2.py has put it. A process first trains
the embedded toy for a step, so that all libraries are loaded and have what they need; what it holds then is its base, and what the training of the
case adds at its peak is the number. Blocks above 1 MB (above 64 kB where tensors are small) are given back to the system when they are freed, by way
of MALLOC_MMAP_THRESHOLD_, which shows what the tensors need; some cases run once more without, as the C library by itself keeps much in stock.
nbs/guides/speed_and_memory.ipynb holds the numbers against what is computed from the shape.
"""
import argparse, datetime as dt, json, os, random, subprocess, sys, tempfile
from pathlib import Path

from bench_trl import machine

ROOT = Path(__file__).resolve().parents[1]
BASE = dict(hidden=384, inner=1024, layers=8, vocab=32_000, batch=2, prompt=200, answer=200, steps=2)  # 28 million weights
SMALL = dict(above=2**16)  # many tensors of less than 1 MB
SMOL = dict(model='smollm2', batch=2, prompt=200, answer=200, steps=2)
CASES = {
    'base': BASE | dict(kept=True),
    'vocabulary 128k': BASE | dict(vocab=128_000), 'untied': BASE | dict(tied=False), 'wide': BASE | dict(hidden=768, inner=2048, kept=True),
    'not checkpointed, batch 8': BASE | dict(checkpointing=False, batch=8, kept=True), 'bf16': BASE | SMALL | dict(bf16=True), 'bf16, not checkpointed, batch 8': BASE | dict(bf16=True, checkpointing=False, batch=8),
    'batch 8': BASE | SMALL | dict(batch=8), 'deep': BASE | dict(layers=24), 'bf16, batch 8': BASE | SMALL | dict(bf16=True, batch=8),
    'LoRA, wide': BASE | dict(lora=16, hidden=768, inner=2048), 'LoRA, not checkpointed': BASE | dict(lora=16, checkpointing=False, batch=4),
    'LoRA, bf16, deep': BASE | SMALL | dict(bf16=True, lora=16, layers=24),
    'precomputed': BASE | dict(precompute=True), 'precomputed, bf16, wide': BASE | dict(precompute=True, bf16=True, hidden=768, inner=2048),
    'long answers': BASE | dict(answer=1500), 'long prompts': BASE | dict(prompt=1500),
    'SmolLM2': SMOL | dict(kept=True), 'SmolLM2, bf16': SMOL | dict(bf16=True), 'SmolLM2, LoRA': SMOL | SMALL | dict(lora=16),
}


def build(c):
    "The case's model, fp32."
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    if c.get('model') == 'smollm2':
        from smollm2 import smollm2_folder
        return AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32)
    return LlamaForCausalLM(LlamaConfig(hidden_size=c['hidden'], intermediate_size=c['inner'], num_hidden_layers=c['layers'], num_attention_heads=c['hidden']//64,
                                        vocab_size=c['vocab'], max_position_embeddings=8192, tie_word_embeddings=c.get('tied', True)))


def nonsense(c, n):
    "Pairs of words of one token each, the same lengths in all of them."
    words, rng = 'the a was and not good bad soup bread'.split(), random.Random(0)
    text = lambda k: ' '+' '.join(rng.choice(words) for _ in range(k))
    return [dict(prompt=text(c['prompt']), chosen=text(c['answer']), rejected=text(c['answer'])) for _ in range(n)]


def train(c, model, rows, tokenizer, folder):
    "Train; tokens through the layers and through the head in a batch, both of one micro-batch."
    import datasets
    from peft import LoraConfig
    from dpo_nb import DPOConfig, DPOTrainer
    from dpo_nb.model.prefix_sharing import pack
    args = DPOConfig(folder, use_cpu=True, bf16=c.get('bf16', False), gradient_checkpointing=c.get('checkpointing', True), max_steps=c['steps'], max_length=None,
                     precompute_ref_log_probs=c.get('precompute', False), per_device_train_batch_size=c['batch'], report_to='none', save_strategy='no', disable_tqdm=True, seed=1)
    lora = LoraConfig(r=c['lora'], target_modules='all-linear', task_type='CAUSAL_LM') if c.get('lora') else None
    t = DPOTrainer(model, args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora)
    out, sys.stdout = sys.stdout, open(os.devnull, 'w')
    t.train()
    sys.stdout = out
    from dpo_nb.data.collator import DataCollatorForPreference
    b = DataCollatorForPreference(tokenizer.pad_token_id)([{k: t.train_dataset[i][k] for k in ('prompt_ids', 'chosen_ids', 'rejected_ids')} for i in range(c['batch'])])
    return t, pack(b).input_ids.numel(), int(b['completion_mask'].sum())


def work(name):
    "One case in this process; prints a line of JSON."
    import ctypes, gc, resource, time, warnings
    warnings.filterwarnings('ignore')
    import datasets, psutil, torch, transformers
    from dpo_nb.toy import load_toy_model, load_toy_tokenizer
    transformers.utils.logging.set_verbosity_error(); transformers.utils.logging.disable_progress_bar(); datasets.disable_progress_bars()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', os.cpu_count())))
    unit = 1024 if sys.platform != 'darwin' else 1                        # Linux counts KiB, macOS bytes
    c, tok = CASES[name], load_toy_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        train(c | dict(batch=1, steps=1), load_toy_model(), nonsense(dict(prompt=5, answer=5), 4), tok, folder); gc.collect()
        if sys.platform == 'linux': ctypes.CDLL('libc.so.6').malloc_trim(0)  # what is free goes back, or the case would find it
        base, start = psutil.Process().memory_info().rss/1e6, time.process_time()
        torch.manual_seed(0)
        t, tokens, scored = train(c, build(c), nonsense(c, c['batch']*c['steps']), tok, folder)
    seconds, peak = time.process_time()-start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*unit/1e6
    ps = list(t.model.parameters())
    print(json.dumps(dict(weights=sum(p.numel() for p in ps), trained=sum(p.numel() for p in ps if p.requires_grad), tokens=tokens, scored=scored,
                          base=round(base), measured=round(peak-base), seconds=round(seconds, 1))))


def case(name, returned):
    "One case in a process of its own; `returned`: the C library gives large blocks back when they are freed."
    done = subprocess.run([sys.executable, __file__, '--worker', name], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env=os.environ | dict(HF_HUB_OFFLINE='1', PYTHONPATH=str(ROOT), OMP_NUM_THREADS=os.environ.get('OMP_NUM_THREADS', '1'))
                          | (dict(MALLOC_MMAP_THRESHOLD_=str(CASES[name].get('above', 2**20))) if returned else {}))
    if done.returncode: sys.exit(f'{name!r} failed\n{done.stderr[-3000:]}')
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--cases', nargs='+', help='names of cases; all if left out')
    ap.add_argument('--out', type=Path, help='a JSON file; cases that it already has and that are not run again stay')
    ap.add_argument('--list', action='store_true')
    ap.add_argument('--worker', help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.list: return print('\n'.join(CASES))
    if args.worker: return work(args.worker)
    names = [n for n in CASES if not args.cases or n in args.cases]
    if not names: sys.exit(f'no case is called {args.cases}; choose from {list(CASES)}')
    old = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    for name in names:
        row = dict(case=CASES[name]) | case(name, True) | dict(date=str(dt.date.today()))
        if CASES[name].get('kept'): row['kept'] = {k: v for k,v in case(name, False).items() if k in ('base', 'measured', 'seconds')}
        old = dict(machine=machine(), rows=old.get('rows', {}) | {name: row})
        if args.out: args.out.write_text(json.dumps(old, indent=1)+'\n')
        print(f"{name:34s} {row['weights']/1e6:6.1f} million weights, {row['tokens']:6d} tokens: {row['measured']:6d} MB over {row['base']} MB of libraries in {row['seconds']} s", *(f"; {row['kept']['measured']} MB in {row['kept']['seconds']} s as malloc likes it" for _ in [0] if 'kept' in row), flush=True)


if __name__ == '__main__': main()
