#!/usr/bin/env python
"""Teach a tiny model to see, then to prefer the right description: what nbs/guides/vision.ipynb shows.

    python scripts/train_shapes.py      # a minute or two on an idle core; writes nbs/guides/vision.json

The language model is the embedded tiny reviewer; its eyes are drawn at random. First it learns to describe on right descriptions only (SFT), then it
goes on in three ways: with SFT, on pairs with `DPOTrainer`, and on pairs with the SFT term added.
"""
import copy, json, platform, tempfile, time
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from dpo_nb import DataCollatorForVisionPreference, DPOConfig, DPOTrainer
from dpo_nb.data.vision import draw_shapes
from dpo_nb.toy import load_toy_model, load_toy_tokenizer
from dpo_nb.diagnose.pair_rewards import pair_tokens
from project import ROOT

SETTINGS = dict(train=600, test=240, seed=0, sft_steps=150, sft_batch=16, sft_lr=1e-3, dpo_steps=80, dpo_batch=16, dpo_lr=1e-4, beta=.1, patch=7)
OUT, SHOWN = ROOT/'nbs'/'guides'/'vision.json', 6
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}{% if p['type']=='image' %}<image>{% else %}{{ p['text'] }}{% endif %}"
            "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def build(seed):
    "A processor, and a model of the tiny reviewer with new eyes."
    torch.manual_seed(seed)
    tok, speaker = load_toy_tokenizer(), load_toy_model()
    tok.add_tokens(['<image>'], special_tokens=True)
    speaker.resize_token_embeddings(len(tok), mean_resizing=False)
    eye = CLIPImageProcessorPil(size=dict(shortest_edge=28), crop_size=dict(height=28, width=28))
    processor = LlavaProcessor(eye, tok, patch_size=SETTINGS['patch'], vision_feature_select_strategy='default', num_additional_image_tokens=1,
                               chat_template=TEMPLATE)
    see = dict(model_type='clip_vision_model', hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=28,
               patch_size=SETTINGS['patch'])
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=see, text_config=speaker.config.to_dict(), image_token_id=processor.image_token_id,
                                                      vision_feature_layer=-1, tie_word_embeddings=True))
    model.model.language_model.load_state_dict(speaker.model.state_dict())
    model.generation_config.eos_token_id = tok.eos_token_id
    return processor, model


def half(batch): return {k: v[:len(v)//2] for k, v in batch.items()}  # the chosen rows


def logps(model, batch):
    "Log-prob of every answer, `[N]`, nats."
    given = {k: v for k, v in batch.items() if k != 'completion_mask'}
    lp = model(**given).logits[:, :-1].log_softmax(-1).gather(2, batch['input_ids'][:, 1:, None])[..., 0]
    return (lp*batch['completion_mask'][:, 1:]).sum(1)


def sft(model, collate, rows, steps, lr, seed):
    "Train on the chosen answers; the loss of each step, nats per token."
    draw, opt, losses = torch.Generator().manual_seed(seed), torch.optim.AdamW(model.parameters(), lr), []
    model.train()
    for _ in range(steps):
        batch = half(collate([rows[i] for i in torch.randint(len(rows), (SETTINGS['sft_batch'],), generator=draw).tolist()]))
        loss = -logps(model, batch).sum()/batch['completion_mask'].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step(); opt.zero_grad()
        losses.append(round(loss.item(), 4))
    return losses


@torch.no_grad()
def margins(model, collate, rows):
    "log π(chosen) − log π(rejected) of every pair, nats."
    model.eval()
    out = []
    for i in range(0, len(rows), 40):
        c, r = logps(model, collate(rows[i:i+40])).chunk(2)
        out += (c-r).tolist()
    return [round(x, 3) for x in out]


@torch.no_grad()
def describe(model, processor, collate, rows):
    "What the model says about each picture, greedily."
    model.eval()
    out = []
    for i in range(0, len(rows), 40):
        texts = [processor.apply_chat_template([dict(role='user', content=[dict(type='image'), dict(type='text', text='What is this?')])],
                                               tokenize=False, add_generation_prompt=True) for _ in rows[i:i+40]]
        batch = processor(text=texts, images=[[r['image']] for r in rows[i:i+40]], return_tensors='pt')
        ids = model.generate(**batch, max_new_tokens=20, do_sample=False, pad_token_id=processor.tokenizer.pad_token_id)
        out += [t.strip() for t in processor.tokenizer.batch_decode(ids[:, batch['input_ids'].shape[1]:], skip_special_tokens=True)]
    return out


def dpo(model, processor, train, **kw):
    "Train on pairs; the trainer."
    s = SETTINGS
    with tempfile.TemporaryDirectory() as folder:
        args = DPOConfig(folder, max_steps=s['dpo_steps'], per_device_train_batch_size=s['dpo_batch'], learning_rate=s['dpo_lr'], beta=s['beta'], bf16=False,
                         use_cpu=True, logging_steps=1, save_strategy='no', report_to='none', max_length=None, seed=s['seed'], disable_tqdm=True, **kw)
        trainer = DPOTrainer(model, args=args, train_dataset=Dataset.from_list(train), processing_class=processor)
        trainer.train()
    return trainer


def main():
    s, t0 = SETTINGS, time.process_time()
    processor, model = build(s['seed'])
    collate = DataCollatorForVisionPreference(processor)
    train, test = draw_shapes(s['train'], 0), draw_shapes(s['test'], 1)
    truth = [r['chosen'][0]['content'] for r in test]
    out = dict(settings=s, parameters=sum(p.numel() for p in model.parameters()), runs={})

    def measure(name, m, **more):
        said = describe(m, processor, collate, test)
        out['runs'][name] = dict(margins=margins(m, collate, test), says=said, right=sum(a == b for a, b in zip(said, truth))/len(test), **more)
        print(name, out['runs'][name]['right'], sum(x > 0 for x in out['runs'][name]['margins'])/len(test), f'{time.process_time()-t0:.0f} s', flush=True)
    out['sft_loss'] = sft(model, collate, train, s['sft_steps'], s['sft_lr'], s['seed'])
    measure('described', model)
    more = copy.deepcopy(model)
    sft(more, collate, train, s['dpo_steps'], s['dpo_lr'], s['seed']+1)
    measure('described on', more)
    for name, kw in dict(DPO={}, both=dict(loss_type=['sigmoid', 'sft'])).items():
        t = dpo(copy.deepcopy(model), processor, train, **kw)
        log = {k: [round(h[k], 4) for h in t.state.log_history if k in h] for k in ('loss', 'rewards/chosen', 'rewards/rejected', 'rewards/accuracies')}
        measure(name, t.model, log=log,
                tokens=[{k: [[x, round(r, 4)] for x, r in p[k]] for k in ('chosen', 'rejected')} for p in pair_tokens(t, test, SHOWN)])
    out['machine'] = dict(python=platform.python_version(), torch=torch.__version__.split('+')[0], transformers=transformers.__version__)
    out['cpu_s'] = round(time.process_time()-t0)
    OUT.write_text(json.dumps(out, separators=(',', ':'))+'\n', encoding='utf-8')


if __name__ == '__main__': main()
