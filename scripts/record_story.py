#!/usr/bin/env python
"""Record the training that the first page of the site plays: the tiny reviewer, six runs of sixty steps, into nbs/site/story.json.

    python scripts/record_story.py    # about five minutes on two cores

Each run trains with `DPOTrainer` on the two thousand choices of the package, once with every label right and once with one in
five wrong, at three values of β. At every third step the model that is being trained scores two reviews of a thing that no
training row mentions, takes the loss of 96 held-out choices, and writes one review. Its random numbers are the same each time:
the first seed with which the untrained model writes a sour review.
"""
import json, random, tempfile, warnings
from pathlib import Path

import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

from dpo_nb import DPOConfig, DPOTrainer, load_toy_model, load_toy_pairs, load_toy_tokenizer
from dpo_nb.toy import review_reward
from project import ROOT

OUT = ROOT/'nbs'/'site'/'story.json'
PROMPT = 'Write a short review of the carrot cake.'
CHOSEN = 'I loved the carrot cake. I loved it.'
REJECTED = 'I regret the carrot cake. I regret it.'
BETAS, WRONG, STEPS, EVERY, HELD_OUT = (.1, .5, 2.), (0., .2), 60, 3, 96


def labelled(rows, wrong, seed=0):
    "The rows with every label right, but for the share `wrong` of them, drawn with `seed`."
    turned = set(random.Random(seed).sample(range(len(rows)), round(wrong*len(rows))))

    def label(row, i):
        sides = row['chosen'], row['rejected']
        if row['flipped'] != (i in turned): sides = sides[::-1]
        return dict(chosen=sides[0], rejected=sides[1])
    return rows.map(label, with_indices=True)


class Recorder(TrainerCallback):
    "Looks at the model at every `EVERY`th step."
    def __init__(self, trainer, tokenizer):
        self.trainer, self.tok, self.frames = trainer, tokenizer, []
        self.start, self.seed = None, 0
        while review_reward(self.review(trainer.model)) > -1: self.seed += 1  # the first that is sour before training

    def prompt_ids(self):
        text = self.tok.apply_chat_template([dict(role='user', content=PROMPT)], tokenize=False, add_generation_prompt=True)
        return self.tok(text)['input_ids']

    def answer_ids(self, answer): return self.tok(answer + self.tok.eos_token)['input_ids']

    @torch.no_grad()
    def per_token(self, model, answer):
        "Log-probability of each token of the answer, nats."
        prompt, ids = self.prompt_ids(), self.answer_ids(answer)
        row = torch.tensor([prompt + ids])
        logps = model(row).logits[0, :-1].log_softmax(-1).gather(-1, row[0, 1:, None])[:, 0]
        return logps[len(prompt)-1:].tolist()

    @torch.no_grad()
    def review(self, model):
        "One sampled review, always with the same random numbers."
        torch.manual_seed(self.seed)
        prompt = torch.tensor([self.prompt_ids()])
        out = model.generate(prompt, do_sample=True, max_new_tokens=60, pad_token_id=self.tok.pad_token_id)
        return self.tok.decode(out[0, prompt.shape[1]:], skip_special_tokens=True).strip()

    def look(self, step, model):
        training, state = model.training, torch.get_rng_state()
        model.eval()
        logps = {side: self.per_token(model, text) for side, text in (('chosen', CHOSEN), ('rejected', REJECTED))}
        self.start = self.start or logps
        moved = {side: [round(now - was, 3) for now, was in zip(logps[side], self.start[side])] for side in logps}
        held = self.trainer.evaluate()
        self.frames.append(dict(step=step, **moved, loss=round(held['eval_loss'], 3),
                                right=round(held['eval_rewards/accuracies'], 3), says=self.review(model)))
        torch.set_rng_state(state)
        model.train(training)

    def on_train_begin(self, args, state, control, model, **_): self.look(0, model)

    def on_step_end(self, args, state, control, model, **_):
        if state.global_step % EVERY == 0: self.look(state.global_step, model)


def record(beta, wrong):
    "One run: its frames, and the log-probability of both answers at the start."
    rows, tok = load_toy_pairs(), load_toy_tokenizer()
    args = DPOConfig(tempfile.mkdtemp(), beta=beta, max_steps=STEPS, per_device_train_batch_size=16, per_device_eval_batch_size=32,
                     learning_rate=2e-4, logging_steps=STEPS, report_to='none', save_strategy='no', disable_tqdm=True, seed=0,
                     use_cpu=True, bf16=False, gradient_checkpointing=False)
    held_out = rows['test'].select(range(HELD_OUT))
    trainer = DPOTrainer(load_toy_model(), args=args, processing_class=tok, train_dataset=labelled(rows['train'], wrong), eval_dataset=held_out)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(recorder := Recorder(trainer, tok))
    trainer.train()
    return recorder


def main():
    warnings.filterwarnings('ignore')
    logging.set_verbosity_error()
    runs = []
    for beta in BETAS:
        for wrong in WRONG:
            r = record(beta, wrong)
            runs.append(dict(beta=beta, wrong=wrong, frames=r.frames))
            first, last = r.frames[0], r.frames[-1]
            print(f'β {beta}, {wrong:.0%} wrong: loss {first["loss"]:.3f} → {last["loss"]:.3f}, accuracy {last["right"]:.0%}; {first["says"]} → {last["says"]}', flush=True)
    tokens = {side: [r.tok.decode(i) for i in r.answer_ids(text)] for side, text in (('chosen', CHOSEN), ('rejected', REJECTED))}
    start = {side: [round(v, 3) for v in r.start[side]] for side in r.start}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(dict(prompt=PROMPT, tokens=tokens, start=start, runs=runs), ensure_ascii=False, separators=(',', ':')) + '\n', encoding='utf-8')
    print(f'{OUT.relative_to(ROOT)}: {OUT.stat().st_size/1000:.0f} kB')


if __name__ == '__main__': main()
