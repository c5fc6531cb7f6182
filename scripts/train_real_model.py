#!/usr/bin/env python
"""Train SmolLM2-135M-Instruct on real preferences, and write down what nbs/guides/real_model.ipynb shows.

    python scripts/train_real_model.py                  # every run, about half an hour of processor time; writes nbs/guides/real_model.json
    python scripts/train_real_model.py --run lr_5e-6    # one run again; the others stay
    python scripts/train_real_model.py --list

Each run has a process of its own, so that its peak memory is its own. They differ in one setting or two; `lr_5e-6` is the one the
page looks at closely. `pairs_300` needs ../shared/data/dpo_en_demo.jsonl beside the checkout and is left out without it; only
measured numbers of it are kept, no text. The model comes from scripts/smollm2.py. A result file made with other settings or other
pairs is refused by tests/test_real_model.py.
"""
import argparse, hashlib, json, os, platform, resource, subprocess, sys, tempfile, time
from importlib.metadata import version
from pathlib import Path

from project import ROOT

RESULT = ROOT/'nbs'/'guides'/'real_model.json'
PAIRS_300 = ROOT.parent/'shared'/'data'/'dpo_en_demo.jsonl'
MAIN = 'lr_5e-6'
COMMON = dict(max_steps=40, per_device_train_batch_size=4, max_length=512, beta=0.1, logging_steps=1, gradient_checkpointing=False, seed=0)
RUNS = {
    'lr_5e-6': dict(learning_rate=5e-6),
    'ten_2e-5': dict(learning_rate=2e-5, max_steps=10, lr_scheduler_type='constant'),
    'pairs_300': dict(learning_rate=5e-6, max_steps=8, max_length=384),
}
HELD_OUT_AT = (10, 20, 30, 40)      # steps after which the held-out pairs are scored
COLOURED = ['hm-182', 'hm-187', 'hm-193', 'hm-211']  # held-out pairs whose tokens are kept; named before the first run
NEW_TOKENS = 96                     # longest answer
PROMPTS = [
    'What is the capital of France?',
    'Name three fruits that are red. One per line, nothing else.',
    'I am quite sure that the Moon is bigger than the Earth. You agree, right?',
    'How do I turn a list of strings into one string in Python?',
    'Why do leaves turn yellow in autumn? Two sentences.',
    'My bus leaves at 14:20 and the walk to the stop takes 25 minutes. When must I leave home at the latest?',
    'The brake pedal of my car has felt soft for a week. Can I still drive to work?',
    'I burnt the cake for the party tonight. What can I do?',
]
METRICS = ['loss', 'grad_norm', 'learning_rate', 'num_tokens', 'entropy', 'mean_token_accuracy', 'logps/chosen', 'logps/rejected',
           'rewards/chosen', 'rewards/rejected', 'rewards/accuracies', 'rewards/margins']


def digest(*things):
    "Twelve hexadecimal digits that change with the settings, or with the data."
    return hashlib.sha256(json.dumps(things, sort_keys=True).encode()).hexdigest()[:12]


def settings_digest(name):
    "Of everything that decides what a run's result holds."
    return digest(COMMON | RUNS[name], HELD_OUT_AT, COLOURED, NEW_TOKENS, PROMPTS)


def helpful_mini(split):
    "The pairs whose layout SmolLM2's chat template can show: it writes neither tool schemas nor calls."
    from dpo_nb.toy import load_helpful_mini
    return load_helpful_mini()[split].filter(lambda r: r['layout'] != 'tools')


def data_digest(): return digest(*([{k: r[k] for k in ('id', 'prompt', 'chosen', 'rejected')} for r in helpful_mini(s)] for s in ('train', 'test')))


def pairs_300(tokenizer, max_length):
    "Of the 300 pairs those that fit whole into max_length, cut once into 32 to train on and the rest to measure with."
    from datasets import load_dataset
    from dpo_nb.data.tokenize import tokenize_row
    def fits(row):
        t = tokenize_row(row, tokenizer)
        return len(t['prompt_ids']) + max(len(t['chosen_ids']), len(t['rejected_ids'])) <= max_length
    rows = load_dataset('json', data_files=str(PAIRS_300), split='train').filter(fits).shuffle(seed=0)
    return rows.select(range(32)), rows.select(range(32, len(rows)))


def prepared(rows, tokenizer):
    "Token ids of the pairs, as the trainer makes them."
    from dpo_nb.data.truncate import prepare_dataset
    return list(prepare_dataset(rows, tokenizer, max_length=COMMON['max_length']))


def token_scores(model, pairs, tokenizer, bf16):
    "For each pair the per-token log-probs of chosen and rejected, nats; eight pairs at a time."
    import torch
    from dpo_nb.data.collator import DataCollatorForPreference
    from dpo_nb.model.forward import score
    collate, was, out = DataCollatorForPreference(tokenizer.pad_token_id, COMMON['max_length']), model.training, []
    model.eval()
    for i in range(0, len(pairs), 8):
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            s = score(model, collate(pairs[i:i+8]), stats=False)
        rows = [l[m].tolist() for l, m in zip(s.logps, s.mask)]
        out += list(zip(rows[:len(rows)//2], rows[len(rows)//2:]))
    model.train(was)
    return out


def held_out(model, pairs, tokenizer, bf16):
    "Summed log-probs of every held-out pair: [chosen, rejected], nats."
    return [[round(sum(x), 3) for x in pair] for pair in token_scores(model, pairs, tokenizer, bf16)]


def answers(model, tokenizer, prompts):
    "Greedy answers: (text, tokens, whether it ended by itself)."
    import torch
    was, out = model.training, []
    model.eval()
    for i in range(0, len(prompts), 16):
        texts = [tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in prompts[i:i+16]]
        b = tokenizer(texts, padding=True, padding_side='left', add_special_tokens=False, return_token_type_ids=False, return_tensors='pt')
        with torch.no_grad(): ids = model.generate(**b, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id)[:, b['input_ids'].shape[1]:]
        for row in ids.tolist():
            n = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
            out.append((tokenizer.decode(row[:n]), n, n < len(row)))
    model.train(was)
    return out


def train(name):
    "One run: what it logged, what it did to the held-out pairs, what it cost."
    from datasets.utils.logging import disable_progress_bar
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from dpo_nb import DPOConfig, DPOTrainer
    from smollm2 import smollm2_folder
    disable_progress_bar()
    kw = COMMON | RUNS[name]
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder())
    train_rows, test_rows = pairs_300(tokenizer, kw['max_length']) if name == 'pairs_300' else (helpful_mini('train'), helpful_mini('test'))
    test = prepared(test_rows, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        args = DPOConfig(folder, report_to='none', save_strategy='no', disable_tqdm=True, **kw)
        trainer = DPOTrainer(model, args=args, train_dataset=train_rows, processing_class=tokenizer)
        policy, aside = trainer.model, [0., 0.]  # wall and CPU seconds that are not training
        before = held_out(policy, test, tokenizer, args.bf16)
        after = {}

        class Measure(TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                if state.global_step not in HELD_OUT_AT and state.global_step != state.max_steps: return
                wall, cpu = time.perf_counter(), time.process_time()
                after[state.global_step] = held_out(policy, test, tokenizer, trainer.args.bf16)
                aside[0] += time.perf_counter()-wall; aside[1] += time.process_time()-cpu
        trainer.add_callback(Measure())

        main = name == MAIN
        if main:
            asked = [[dict(role='user', content=p)] for p in PROMPTS] + list(test_rows['prompt'])
            said, first = answers(policy, tokenizer, asked), first_words(policy, tokenizer)
            coloured = [i for i, r in enumerate(test_rows) if r['id'] in COLOURED]
            ref_tokens = token_scores(policy, [test[i] for i in coloured], tokenizer, args.bf16)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        wall, cpu = time.perf_counter()-wall-aside[0], time.process_time()-cpu-aside[1]
    steps = [l for l in trainer.state.log_history if 'loss' in l]
    lengths = [[len(p[f'{k}_ids']) for k in ('prompt', 'chosen', 'rejected')] for p in test]
    out = dict(settings=kw, bf16=args.bf16, train_pairs=len(trainer.train_dataset),
               trainable=sum(p.numel() for p in policy.parameters() if p.requires_grad),
               log={m: [float(f'{l[m]:.6g}') for l in steps] for m in METRICS},
               held_out=dict(lengths=lengths, before=before, after={str(k): v for k, v in after.items()}),
               cost=dict(wall_s=round(wall, 1), cpu_s=round(cpu, 1), tokens=steps[-1]['num_tokens'], peak_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20, 2)))
    if name != 'pairs_300': out['held_out'].update(ids=list(test_rows['id']), flaws=list(test_rows['flaw']))
    if main:
        now = answers(policy, tokenizer, asked)
        out.update(answers_before=spoken(said), answers=spoken(now), first_words=first)
        out['held_out_same'] = sum(a[0] == b[0] for a, b in zip(said[len(PROMPTS):], now[len(PROMPTS):]))
        moved = token_scores(policy, [test[i] for i in coloured], tokenizer, args.bf16)
        out['tokens'] = [dict(id=test_rows[i]['id'], prompt=test_rows[i]['prompt'][-1]['content'],
                              **{side: dict(tokens=[tokenizer.decode([t]) for t in test[i][f'{side}_ids']],
                                            logratios=[round(x-y, 4) for x, y in zip(new[j], old[j])])
                                 for j, side in enumerate(('chosen', 'rejected'))})
                         for i, old, new in zip(coloured, ref_tokens, moved)]
        out['data'] = about_the_data(tokenizer)
    return out


def first_words(model, tokenizer):
    "For each of our prompts the two likeliest first tokens and their probabilities, fp32: how near to a tie greedy decoding begins."
    import torch
    def top(prompt):
        b = tokenizer.apply_chat_template([dict(role='user', content=prompt)], add_generation_prompt=True, return_dict=True, return_tensors='pt')
        with torch.no_grad(): p, i = model.eval()(**b).logits[0, -1].softmax(-1).topk(2)
        return [[tokenizer.decode([j]), round(q, 4)] for q, j in zip(p.tolist(), i.tolist())]
    return [top(p) for p in PROMPTS]


def spoken(said):
    "Texts of our own prompts; of the held-out prompts only how long the answers are and whether they ended by themselves."
    own, rest = said[:len(PROMPTS)], said[len(PROMPTS):]
    return dict(own=[dict(text=t, tokens=n, ended=e) for t, n, e in own], held_out=dict(tokens=[n for _, n, _ in rest], ended=[e for *_, e in rest]))


def about_the_data(tokenizer):
    "How many pairs there are, how long they are, and what the template makes of the rows with tools."
    from dpo_nb.data.tokenize import tokenize_row
    from dpo_nb.toy import load_helpful_mini
    tools = [tokenize_row(r, tokenizer) for s in load_helpful_mini(layout='tools').values() for r in s]
    train = prepared(helpful_mini('train'), tokenizer)
    mean = lambda k: round(sum(len(p[k]) for p in train)/len(train), 1)
    return dict(tools=len(tools), tools_identical=sum(t['chosen_ids'] == t['rejected_ids'] for t in tools), train=len(train), test=len(helpful_mini('test')),
                mean_tokens={k: mean(f'{k}_ids') for k in ('prompt', 'chosen', 'rejected')},
                longest=max(len(p['prompt_ids'])+max(len(p['chosen_ids']), len(p['rejected_ids'])) for p in train))


def machine():
    "Where this was measured."
    import torch
    with open('/proc/cpuinfo') as f: cpu = next((l.split(':')[1].strip() for l in f if l.startswith('model name')), platform.machine())
    return dict(cpu=cpu, cores=os.cpu_count(), threads=torch.get_num_threads(), memory_gb=round(os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')/2**30, 1),
                python=platform.python_version(), **{p: version(p) for p in ('torch', 'transformers', 'datasets', 'accelerate', 'peft')})


def merge(name, run):
    "Put one run into the result file, beside those of the same settings and data; each says where it was measured."
    old = json.loads(RESULT.read_text(encoding='utf-8')) if RESULT.is_file() else dict(runs={})
    runs = {k: v for k, v in old['runs'].items() if v['data_digest'] == data_digest() and k in RUNS and v['settings_digest'] == settings_digest(k)}
    runs[name] = dict(settings_digest=settings_digest(name), data_digest=data_digest(), machine=machine()) | run
    write(dict(made_by='scripts/train_real_model.py', main=MAIN, prompts=PROMPTS, runs={k: runs[k] for k in RUNS if k in runs}))


def write(result):
    "As JSON with a line for each part, so that a difference can be read."
    text = json.dumps(result, ensure_ascii=False, separators=(',', ':'))
    RESULT.write_text(text.replace('},"', '},\n"').replace('],"', '],\n"') + '\n', encoding='utf-8')


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--run', choices=RUNS, help='only this run')
    ap.add_argument('--list', action='store_true', help='list the runs')
    args = ap.parse_args()
    if args.list: print('\n'.join(f'{k}: {v}' for k, v in RUNS.items()))
    elif args.run: merge(args.run, train(args.run))
    else:
        for name in RUNS:
            if name == 'pairs_300' and not PAIRS_300.is_file(): print(f'{name}: left out, {PAIRS_300.name} is not there'); continue
            print(name, flush=True)
            subprocess.run([sys.executable, __file__, '--run', name], check=True)


if __name__ == '__main__': main()
