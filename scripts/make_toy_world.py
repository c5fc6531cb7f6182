#!/usr/bin/env python
"""Make the assets of tiny reviews from nothing: tokenizer, model, preference pairs.

    python scripts/make_toy_world.py                          # rebuild dpo_nb/assets/tiny_reviews (about 6 minutes on 2 cores)
    python scripts/make_toy_world.py --out DIR --steps 5      # a quick, undertrained copy

The same machine, library versions and arguments give the same bytes: one seed, one thread, no clock, no data from outside.
"""
import argparse, gzip, json, os, random, time
from pathlib import Path

os.environ['TOKENIZERS_PARALLELISM'] = 'false'
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dpo_nb.toy import kinds, phrasings, review_reward, sample_reviews, toy_prompts, write_review

SPECIAL = ['<|pad|>', '<|im_start|>', '<|im_end|>']
TEMPLATE = """\
{%- if tools %}<|im_start|>tools
{{ tools | tojson }}<|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] or '' }}{% if m['tool_calls'] %}{{ m['tool_calls'] | tojson }}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def dialogues(n, seed):
    "Yield (messages of the prompt, review) from the grammar."
    rng = random.Random(seed)
    subjects = [s for k in kinds.values() for s in k['subjects']]
    for _ in range(n):
        s = rng.choice(subjects)
        yield [dict(role='user', content=rng.choice(phrasings).format(s))], write_review(s, rng)


def make_tokenizer(vocab=896, seed=1):
    "Byte-level BPE over prompts and reviews, with a ChatML template."
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    texts = (t for p,r in dialogues(10_000, seed) for t in ('user\n', p[0]['content'], 'assistant\n', r))
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab, special_tokens=SPECIAL, show_progress=False,
                                                       initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token='<|pad|>', eos_token='<|im_end|>', additional_special_tokens=['<|im_start|>'],
                                   model_max_length=1024, clean_up_tokenization_spaces=False, chat_template=TEMPLATE)


def encode(tok, dialogue):
    "Token ids of prompt and completion, and how many belong to the prompt."
    prompt, review = dialogue
    p = tok.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    full = tok.apply_chat_template(prompt + [dict(role='assistant', content=review)], tokenize=False)
    n, ids = len(tok(p)['input_ids']), tok(full)['input_ids']
    return ids, n


def batch(rows, pad):
    "Right-padded ids, attention mask and labels; labels of prompt and padding are −100."
    T = max(len(ids) for ids,_ in rows)
    ids = torch.tensor([r + [pad]*(T-len(r)) for r,_ in rows])
    att = torch.tensor([[1]*len(r) + [0]*(T-len(r)) for r,_ in rows])
    lab = torch.tensor([[-100]*n + r[n:] + [-100]*(T-len(r)) for r,n in rows])
    return dict(input_ids=ids, attention_mask=att, labels=lab)


def make_model(tok, steps, seed=2, bs=32, lr=2e-3, warmup=50):
    "Train a Llama of under a million parameters from scratch on the grammar's reviews."
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tok), hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, intermediate_size=344,
        max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=.04,
        bos_token_id=None, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id))
    print(f'{sum(p.numel() for p in model.parameters()):,} parameters', flush=True)
    opt = torch.optim.AdamW(model.parameters(), lr=lr, betas=(.9, .95), weight_decay=.01)
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: min((i+1)/warmup, max(1-i/steps, 0)))
    data, t = dialogues(steps*bs, seed), time.time()
    for i in range(steps):
        rows = [encode(tok, next(data)) for _ in range(bs)]
        loss = model(**batch(rows, tok.pad_token_id)).loss
        opt.zero_grad(); loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step(); sched.step()
        if i%100==0 or i==steps-1: print(f'step {i:4d}  loss {loss.item():.4f}  {time.time()-t:5.0f} s', flush=True)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1., top_k=0, top_p=1.,
                                               eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    return model.eval()


def make_pairs(model, tok, split, n, noise, seed, rounds=100):
    "Pairs of two reviews that the model itself wrote for one prompt, labelled by the known reward; `noise` of the labels are swapped."
    prompts, rows, seen = toy_prompts(split), [], set()
    rng = random.Random(seed)
    for round_ in range(rounds):
        ps = rng.choices(prompts, k=400)
        texts = sample_reviews(model, tok, ps, n=2, seed=1000*seed+round_)
        for p,a,b in zip(ps, texts[::2], texts[1::2]):
            ra, rb = review_reward(a), review_reward(b)
            if ra==rb or (a, b) in seen or len(rows)==n: continue
            seen.add((a, b))
            if ra < rb: a, b, ra, rb = b, a, rb, ra
            rows.append(dict(prompt=p, chosen=a, rejected=b, reward_chosen=round(ra, 4), reward_rejected=round(rb, 4), flipped=False))
        if len(rows)==n: break
    else: raise RuntimeError(f'only {len(rows)} of {n} pairs after {rounds} rounds; the model writes too little, train it for more steps')
    for i in rng.sample(range(n), round(noise*n)):
        r = rows[i]
        rows[i] = dict(prompt=r['prompt'], chosen=r['rejected'], rejected=r['chosen'],
                       reward_chosen=r['reward_rejected'], reward_rejected=r['reward_chosen'], flipped=True)
    say = lambda t: [dict(role='assistant', content=t)]
    return [{**r, 'chosen': say(r['chosen']), 'rejected': say(r['rejected'])} for r in rows]


def write_rows(rows, path):
    "Gzipped json lines, without a time stamp."
    text = ''.join(json.dumps(r)+'\n' for r in rows)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def main(args=None):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--out', type=Path, default=Path(__file__).resolve().parents[1]/'dpo_nb'/'assets'/'tiny_reviews')
    ap.add_argument('--steps', type=int, default=1200, help='training steps of the model')
    ap.add_argument('--train', type=int, default=2000, help='training pairs')
    ap.add_argument('--test', type=int, default=300, help='test pairs')
    ap.add_argument('--noise', type=float, default=.1, help='share of training labels swapped')
    a = ap.parse_args(args)
    torch.set_num_threads(1) # one order of summation, whatever the machine is doing
    torch.use_deterministic_algorithms(True)
    tok = make_tokenizer()
    model = make_model(tok, a.steps)
    a.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(a.out/'model'); tok.save_pretrained(a.out/'model')
    for p in (a.out/'model').iterdir(): p.chmod(0o644)
    if a.train: write_rows(make_pairs(model, tok, 'train', a.train, a.noise, seed=3), a.out/'train.jsonl.gz')
    if a.test: write_rows(make_pairs(model, tok, 'test', a.test, 0., seed=4), a.out/'test.jsonl.gz')


if __name__ == '__main__': main()
