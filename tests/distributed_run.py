"What each of two processes does for tests/test_distributed.py; started by torchrun, writes what it saw to a file."
import json, os, sys
from pathlib import Path

import accelerate.state, torch
from accelerate.utils import DistributedType
from peft import LoraConfig
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoModelForCausalLM

from dpo_nb import DPOConfig, DPOTrainer
from dpo_nb.data.collator import DataCollatorForPreference
from dpo_nb.data.truncate import prepare_dataset
from dpo_nb.losses.sigmoid import sigmoid_loss
from dpo_nb.reference.copies import frozen_copy
from dpo_nb.toy import load_toy_pairs, load_toy_tokenizer
from dpo_nb.model.forward import pair_logps, score

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
    'a loss that remembers': dict(loss_type='bco', save_strategy='steps', save_steps=2),
    'a loss that remembers, resumed': dict(resume='a loss that remembers', loss_type='bco', save_strategy='steps', save_steps=2),
}
SPREAD = {  # the way of spreading weights → the runs that are tried with it, and settings
    'fsdp2': (['plain', 'evaluated', 'lora', 'precomputed', 'synced', 'resumed', 'synced and resumed', 'a loss that remembers, resumed'],
              dict(gradient_checkpointing=False, fsdp=True, fsdp_config=dict(version=2, reshard_after_forward=True, cpu_ram_efficient_loading=True, activation_checkpointing=True,
                                                                            state_dict_type='SHARDED_STATE_DICT'))),
    'zero2': (['plain', 'synced', 'resumed', 'synced and resumed'], dict(gradient_checkpointing=False)),
    'zero3': (['plain', 'precomputed', 'resumed', 'a loss that remembers, resumed'], dict(gradient_checkpointing=False))}


def spread_on_a_cpu(way):
    "Accelerate spreads weights on GPUs only; told otherwise, it does so on a CPU, by the same code."
    state, old_state, old_partial = accelerate.state, accelerate.state.AcceleratorState.__init__, accelerate.state.PartialState.__init__
    def with_fsdp(self, *args, fsdp_plugin=None, **kw):
        old_state(self, *args, fsdp_plugin=fsdp_plugin, **kw)
        if fsdp_plugin is None: return
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        state.PartialState._shared_state['distributed_type'] = DistributedType.FSDP
    if way == 'fsdp2': state.AcceleratorState.__init__ = with_fsdp
    if way.startswith('zero'):
        state.PartialState.__init__ = lambda self, cpu=False, **kw: old_partial(self, cpu=False, **{k: v for k, v in kw.items() if k != 'backend'})
        state.PartialState._prepare_backend = lambda self, *args: ('gloo', DistributedType.MULTI_CPU)


def trainer(folder, out, batch, evals=None, peft_config=None, **kw):
    args = DPOConfig(str(out), **(dict(max_steps=4, per_device_train_batch_size=batch, per_device_eval_batch_size=batch, learning_rate=1e-2, logging_steps=1, bf16=False, use_cpu=True,
                                       ddp_backend='gloo' if 'WORLD_SIZE' in os.environ else None, save_strategy='no', report_to='none', disable_tqdm=True, seed=1) | kw))
    return DPOTrainer(str(folder), args=args, train_dataset=load_toy_pairs()['train'].select(range(32)), peft_config=peft_config,
                      eval_dataset=evals and load_toy_pairs()['test'].select(range(evals)))


def history(folder, out, batch, name, where=None, **more):
    "Log history of one of `RUNS`; `where` notes of what kind the reference's weights are, and keeps the trainer."
    kw = RUNS[name] | more
    resume = kw.pop('resume', None)
    t = trainer(folder, out/name, batch, **kw)
    if where is not None: where[name], where['trainer'] = [type(w).__name__ + ' in pieces'*hasattr(w, 'ds_id') for w in t.ref_model.parameters()][-1:] if t.ref_model is not None else [], t
    t.train(resume_from_checkpoint=str(out/resume/'checkpoint-2') if resume else None)
    return t.state.log_history


def examined(folder, out, emptied=False, **more):
    "What the doctor finds before training, as (name, value, verdict); `emptied`: where only the first process has read the weights."
    t = trainer(folder, out/'doctor', 2, **more)
    if emptied and torch.distributed.get_rank():
        for w in t.model.parameters(): w.data.zero_()
    return [(f.name, f.value, f.verdict) for f in t.doctor()]


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


def sharded(folder, out, rank, **how):
    "Policy and reference, each scattered over both processes by `fully_shard`, through the trainer's own forward."
    mesh = init_device_mesh('cpu', (2,))
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ref = frozen_copy(policy)
    for m in (policy, ref):
        for layer in m.model.layers: fully_shard(layer, mesh=mesh, **how)
        fully_shard(m, mesh=mesh, **how)
    logps, loss = step(policy.train(), ref, one_batch())
    grads = {k: w.grad.full_tensor().norm().item() for k, w in policy.named_parameters()}
    whole = get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0: torch.save(whole, out/'sharded.pt')
    return dict(logps=logps, loss=loss, grads=grads)


def end(seen, out):
    (out/f'rank{torch.distributed.get_rank()}.json').write_text(json.dumps(seen))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # not through Python's own end, where gloo's threads now and then call std::terminate


if __name__ == '__main__':
    folder, out, way = Path(sys.argv[1]), Path(sys.argv[2]), (sys.argv+['ddp'])[3]
    if way == 'ddp':
        seen = {name: history(folder, out, 2, name) for name in RUNS}
        rank = torch.distributed.get_rank()
        # the whole, too, is let go of between forward and backward: what Accelerate up to 1.13 asks for with reshard_after_forward
        end(seen | dict(doctor=examined(folder, out), let_go=sharded(folder, out, rank, reshard_after_forward=True), sharded=sharded(folder, out, rank)), out)
    spread_on_a_cpu(way)
    names, more = SPREAD[way]
    needed = {RUNS[n]['resume'] for n in names if 'resume' in RUNS[n]} - set(names)
    where, seen = {}, {}
    for name in (*needed, *names):
        seen[name] = history(folder, out, 2, name, where, **more)
        if name == 'plain': where.pop('trainer').save_model(str(out/'whole'))
    where.pop('trainer', None)
    seen['doctor'] = examined(folder, out, **more)
    if way == 'fsdp2': seen['doctor, weights read once'] = examined(folder, out, emptied=True, **more)
    end(seen | dict(where=where), out)
