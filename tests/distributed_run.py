"What each of two processes does for tests/test_distributed.py; started by torchrun, writes what it saw to a file."
import json, os, sys
from pathlib import Path

import torch
from peft import LoraConfig
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoModelForCausalLM

from dpo_nb import DPOConfig, DPOTrainer
from dpo_nb.data.collator import DataCollatorForPreference
from dpo_nb.data.truncate import prepare_dataset
from dpo_nb.losses.sigmoid import sigmoid_loss
from dpo_nb.reference.reference import frozen_copy
from dpo_nb.toy import load_toy_pairs, load_toy_tokenizer
from dpo_nb.train.forward import pair_logps, score

LORA = LoraConfig(r=4, lora_alpha=8, target_modules=['q_proj', 'v_proj'])
RUNS = {  # the name of a run → settings; `resume` goes on from the middle of another
    'plain': dict(save_strategy='steps', save_steps=2),
    'accumulated': dict(gradient_accumulation_steps=2),
    'evaluated': dict(evals=8, eval_strategy='steps', eval_steps=4),
    'lora': dict(peft_config=LORA),
    'precomputed': dict(precompute_ref_log_probs=True, evals=8, eval_strategy='steps', eval_steps=4),
    'synced': dict(sync_ref_model=True, ref_model_sync_steps=2, save_strategy='steps', save_steps=2),
    'resumed': dict(resume='plain', save_strategy='steps', save_steps=2),
    'synced and resumed': dict(resume='synced', sync_ref_model=True, ref_model_sync_steps=2, save_strategy='steps', save_steps=2),
}


def trainer(folder, out, batch, evals=None, peft_config=None, **kw):
    args = DPOConfig(str(out), **(dict(max_steps=4, per_device_train_batch_size=batch, per_device_eval_batch_size=batch, learning_rate=1e-2, logging_steps=1, bf16=False, use_cpu=True,
                                       ddp_backend='gloo' if 'WORLD_SIZE' in os.environ else None, save_strategy='no', report_to='none', disable_tqdm=True, seed=1) | kw))
    return DPOTrainer(str(folder), args=args, train_dataset=load_toy_pairs()['train'].select(range(32)), peft_config=peft_config,
                      eval_dataset=evals and load_toy_pairs()['test'].select(range(evals)))


def history(folder, out, batch, name):
    "Log history of one of `RUNS`."
    kw = dict(RUNS[name])
    resume = kw.pop('resume', None)
    t = trainer(folder, out/name, batch, **kw)
    t.train(resume_from_checkpoint=str(out/resume/'checkpoint-2') if resume else None)
    return t.state.log_history


def one_batch(n=4):
    tok = load_toy_tokenizer()
    rows = prepare_dataset(load_toy_pairs()['train'].select(range(n)), tok)
    return DataCollatorForPreference(tok.pad_token_id)([rows[i] for i in range(n)])


def step(policy, ref, batch):
    "Log-probs and loss of a batch, gradients left on the policy."
    s = score(policy, batch)
    with torch.no_grad(): r = score(ref, batch, stats=False)
    loss = sigmoid_loss(pair_logps(s, r.sums), beta=.1).mean()
    loss.backward()
    return s.sums.tolist(), loss.item()


def sharded(folder, out, rank):
    "Policy and reference, each scattered over both processes by `fully_shard`, through the trainer's own forward."
    mesh = init_device_mesh('cpu', (2,))
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ref = frozen_copy(policy)
    for m in (policy, ref):
        for layer in m.model.layers: fully_shard(layer, mesh=mesh)
        fully_shard(m, mesh=mesh)
    logps, loss = step(policy.train(), ref, one_batch())
    grads = {k: w.grad.full_tensor().norm().item() for k, w in policy.named_parameters()}
    whole = get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0: torch.save(whole, out/'sharded.pt')
    return dict(logps=logps, loss=loss, grads=grads)


if __name__ == '__main__':
    folder, out = map(Path, sys.argv[1:])
    seen = {name: history(folder, out, 2, name) for name in RUNS}
    rank = torch.distributed.get_rank()
    seen['sharded'] = sharded(folder, out, rank)
    (out/f'rank{rank}.json').write_text(json.dumps(seen))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # not through Python's own end, where gloo's threads now and then call std::terminate
