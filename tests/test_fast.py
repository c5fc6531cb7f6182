"The fast paths (no logits, shared prompts, a remembered reference) change no loss and no gradient, whatever the model."
import random

import pytest, torch
from peft import LoraConfig, get_peft_model
from transformers import (BloomConfig, BloomForCausalLM, CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2Config,
                          GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM)

from dpo_nb.data.collator import DataCollatorForPreference
from dpo_nb.model.fused_head import FusedLogps
from dpo_nb.model.prefix_sharing import cannot_share, pack, share_prefix
from dpo_nb.logps import score_rows, score_tokens
from dpo_nb.losses.sigmoid import sigmoid_loss
from dpo_nb.reference.cache import RefCache
from dpo_nb.model.forward import fused_head, pair_logps, score

pytestmark = pytest.mark.filterwarnings('ignore')  # PEFT and transformers announce their next versions

V = 83
SIZE = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, vocab_size=V, max_position_embeddings=64,
            bos_token_id=1, eos_token_id=2, pad_token_id=0)
GROUPED = SIZE | dict(num_key_value_heads=2)
MODELS = {
    'llama': lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    'llama, tied, biased': lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
    'llama, eager': lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, attn_implementation='eager')),
    'qwen2': lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    'qwen3': lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=8)),
    'qwen3 of experts': lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**GROUPED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)),
    'gemma2, window 4': lambda: Gemma2ForCausalLM(Gemma2Config(**GROUPED, head_dim=8, sliding_window=4, query_pre_attn_scalar=8)),
    'mistral, window 5': lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=5)),
    'cohere': lambda: CohereForCausalLM(CohereConfig(**GROUPED)),
    'gpt2': lambda: GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=4, vocab_size=V, n_positions=64, attn_pdrop=0., embd_pdrop=0., resid_pdrop=0.,
                                               bos_token_id=1, eos_token_id=2)),
    'gpt_neox': lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZE)),
}


def make(name, seed=0, lora=False, checkpointing=False):
    "A model with weights large enough that attention matters, ready to train."
    torch.manual_seed(seed)
    model = MODELS[name]()
    with torch.no_grad():
        for w in model.parameters():
            if w.ndim > 1: w.normal_(std=.25)
    if lora:
        model = get_peft_model(model, LoraConfig(r=3, target_modules='all-linear', task_type='CAUSAL_LM'))
        with torch.no_grad():
            for k, w in model.named_parameters():
                if 'lora_B' in k: w.normal_(std=.2)  # or the adapter would do nothing
    if checkpointing:
        model.gradient_checkpointing_enable(dict(use_reentrant=False))
        model.enable_input_require_grads()
    return model.train()


def draw(seed, size=None):
    "A batch of random pairs: some prompts long, some empty of answers in common, some answers that begin alike or are the same."
    rng = random.Random(seed)
    def ids(low, high): return [rng.randrange(3, V) for _ in range(rng.randint(low, high))]
    pairs = []
    for _ in range(size or rng.randint(1, 5)):
        start = ids(1, 4) if rng.random() < .4 else []
        pairs.append(dict(prompt_ids=ids(1, rng.choice([3, 25])), chosen_ids=start+ids(1, 9), rejected_ids=start+ids(0 if start else 1, 9)))
    if rng.random() < .2: pairs[0]['rejected_ids'] = pairs[0]['chosen_ids']
    cut = dict(max_length=rng.choice([8, 12]), truncation_mode=rng.choice(['keep_start', 'keep_end'])) if rng.random() < .3 else {}
    return DataCollatorForPreference(0, pad_to_multiple_of=rng.choice([None, 8]), **cut)(pairs)


def plainly(model, batch, **kw):
    "Scores by way of all logits of the padded batch."
    logits = model(input_ids=batch['input_ids'], attention_mask=batch['attention_mask'], use_cache=False).logits
    return score_tokens(logits, batch['input_ids'], batch['completion_mask'], **kw)


def loss_and_grads(model, scores, ref):
    "A DPO loss and its gradient at every weight that is trained, in one vector."
    loss = sigmoid_loss(pair_logps(scores, ref), beta=.3).mean()
    trained = [w for w in model.parameters() if w.requires_grad]
    grads = torch.autograd.grad(loss, trained, allow_unused=True)
    return loss.detach(), torch.cat([torch.zeros_like(w).flatten() if g is None else g.flatten() for w, g in zip(trained, grads)])


def relative(a, b): return ((a-b).norm()/a.norm().clamp(min=1e-12)).item()


@pytest.mark.parametrize('checkpointing', [False, True], ids=['', 'checkpointing'])
@pytest.mark.parametrize('lora', [False, True], ids=['', 'lora'])
@pytest.mark.parametrize('name', MODELS)
def test_equal_loss_and_gradients(name, lora, checkpointing, monkeypatch):
    model = make(name, lora=lora, checkpointing=checkpointing)
    assert fused_head(model)[0] is not None and not cannot_share(model)
    for seed in range(4):
        batch = draw(seed)
        ref = torch.randn(len(batch['input_ids']))*3 + plainly(model, batch).sums.detach()
        share_prefix(model, False)
        plain = plainly(model, batch, log_p2=True)
        want = loss_and_grads(model, plain, ref)
        for packed, rows_up_to in ((False, 0), (True, 0), (True, 128)):  # attention in pieces, then in rows
            monkeypatch.setattr('dpo_nb.model.prefix_sharing.rows_up_to', rows_up_to)
            share_prefix(model, packed)
            fast = score(model, batch, log_p2=True)
            got = loss_and_grads(model, fast, ref)
            assert relative(want[0], got[0]) < 1e-5 and relative(want[1], got[1]) < 1e-5, (seed, packed, rows_up_to)
            assert relative(plain.logps, fast.logps) < 1e-5
            for k in ('entropy', 'mean_logit', 'log_p2'): assert relative(getattr(plain, k), getattr(fast, k)) < 1e-4, k
            assert fast.entropy.requires_grad is False and torch.equal(plain.mask, fast.mask)
            assert (plain.top1 != fast.top1).sum() <= 1  # a tie in fp32


@pytest.mark.parametrize('name', ['llama', 'gemma2, window 4', 'cohere'])
def test_same_numbers_in_bf16_autocast(name, monkeypatch):
    "Rounding differs by where it happens; the fused way must not be further from the truth than the plain one."
    model = make(name)
    for seed in range(3):
        batch = draw(seed, 4)
        with torch.no_grad():
            share_prefix(model, False)
            truth = plainly(model, batch).logps
            monkeypatch.setattr('dpo_nb.model.forward.score_rows', None)  # the logits are not fallen back to
            with torch.autocast('cpu', torch.bfloat16):
                plain, fused = plainly(model, batch).logps, score(model, batch).logps
                share_prefix(model)
                packed = score(model, batch).logps
        off = [(x-truth).norm().item() for x in (plain, fused, packed)]
        assert all(x.dtype is torch.float32 for x in (plain, fused, packed)) and max(off[1:]) < 1.5*off[0] + 1e-3, off


def test_gradient_of_bf16_weights_is_as_good_as_autograds():
    "Against fp32 arithmetic on the same numbers: many blocks, and no more error than one large matrix product has."
    torch.manual_seed(0)
    h, w, y = torch.randn(600, 32).bfloat16(), torch.randn(900, 32).bfloat16().requires_grad_(), torch.randint(900, (600,))
    mask, exact = torch.ones(1, 600, dtype=torch.bool), w.detach().float().requires_grad_()
    want, = torch.autograd.grad(score_rows(h.float()@exact.T, y, mask).sums.sum(), exact)
    plain, = torch.autograd.grad(score_rows(h@w.T, y, mask).sums.sum(), w)
    fused, = torch.autograd.grad(FusedLogps.apply(h, w, None, y, 1., None, 64, False, False)[0].sum(), w)
    assert fused.dtype is torch.bfloat16 and relative(want, fused.float()) < 1.1*relative(want, plain.float()) < .02


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_the_ruler_is_read_in_every_precision_and_length(dtype):
    from dpo_nb.model.forward import follows, instead_of_logits, logit_rule
    model = make('cohere').to(dtype)
    for n in (1, 2, 37, 1000):
        hidden = torch.zeros(1, n, 24, dtype=dtype)
        with torch.no_grad(), instead_of_logits(model.lm_head, lambda h: None): logits = model.lm_head(hidden)*model.config.logit_scale
        assert follows(logit_rule(model), logits) and not follows(dict(scale=1., softcap=None), logits)


def test_the_trainer_takes_its_shortcuts_in_bf16(tmp_path, monkeypatch):
    from dpo_nb.toy import load_toy_model
    monkeypatch.setattr('dpo_nb.model.forward.score_rows', None)
    t = trainer(tmp_path, load_toy_model(), bf16=True, num_train_epochs=1)
    from dpo_nb.model.prefix_sharing import shares_prefix
    assert shares_prefix(t.model) and shares_prefix(t.ref_model) and len(curve(t)) == 2


def test_bf16_autocast_does_not_pass_for_an_error_of_sharing(tmp_path):
    "Whether a model can share is tried in its own precision: rounding to bf16 alone is off by more than what is allowed."
    from dpo_nb.model.prefix_sharing import shares_prefix, sharing_error
    from dpo_nb.toy import load_toy_tokenizer
    def large():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(hidden_size=576, intermediate_size=576, num_hidden_layers=8, num_attention_heads=9, num_key_value_heads=3,
                                             vocab_size=len(load_toy_tokenizer())))
        with torch.no_grad():
            for w in model.parameters():
                if w.ndim > 1: w.normal_(std=.06)
        return model
    with torch.autocast('cpu', torch.bfloat16): assert sharing_error(large()) > 1e-3
    t = trainer(tmp_path, large(), bf16=True, num_train_epochs=1)
    assert shares_prefix(t.model) and shares_prefix(t.ref_model)


def test_who_cannot_share_says_so_and_is_scored_all_the_same():
    model = BloomForCausalLM(BloomConfig(hidden_size=24, n_layer=2, n_head=4, vocab_size=V)).train()
    assert 'BloomForCausalLM' in cannot_share(model)
    batch = draw(0)
    a, b = plainly(model, batch), score(model, batch)
    assert relative(a.logps, b.logps) < 1e-5


def test_batches_that_cannot_be_packed_are_computed_as_they_are():
    model = make('llama').eval()
    batch = draw(1, 3)
    share_prefix(model)
    left = {k: torch.stack([r.roll(len(r)-int(m.sum())) for r, m in zip(v, batch['attention_mask'])]) for k, v in batch.items()}
    assert pack({k: left[k] for k in ('input_ids', 'attention_mask')}) is None or torch.equal(left['input_ids'], batch['input_ids'])
    with torch.no_grad(): assert relative(score(model, batch).sums, score(model, left).sums) < 1e-5


def test_generation_is_the_same_with_sharing_on():
    model = make('qwen3').eval()
    prompt = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    texts = []
    for on in (False, True):
        share_prefix(model, on)
        texts.append(model.generate(prompt, attention_mask=(prompt > 0).long(), max_new_tokens=8, do_sample=False, pad_token_id=0))
    assert torch.equal(*texts)


def test_a_remembered_reference_gives_the_same_loss_and_gradient():
    policy, ref, cache = make('llama'), make('llama', seed=1).eval(), RefCache()
    batches = [draw(s, 3) for s in range(3)]
    with torch.no_grad(): asked = [cache.scores(b, lambda: score(ref, b, stats=False)) for b in batches]
    def forbidden(): raise AssertionError('the reference was asked again')
    for b, a in zip(batches, asked):
        r = cache.scores(b, forbidden)
        assert torch.equal(r.logps, a.logps) and torch.equal(r.mask, a.mask)
        one, two = (loss_and_grads(policy, score(policy, b), x.sums) for x in (a, r))
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def trainer(tmp_path, model, **kw):
    import dpo_nb
    from dpo_nb.toy import load_toy_pairs, load_toy_tokenizer
    own = {k: kw.pop(k) for k in ('peft_config', 'eval_dataset') if k in kw}
    args = dpo_nb.DPOConfig(str(tmp_path), **(dict(use_cpu=True, bf16=False, report_to='none', save_strategy='no', disable_tqdm=True, logging_steps=1,
                                                   per_device_train_batch_size=4, learning_rate=3e-4, seed=3, num_train_epochs=3) | kw))
    rows = load_toy_pairs()['train'].select(range(8))
    return dpo_nb.DPOTrainer(model, args=args, train_dataset=rows, processing_class=load_toy_tokenizer(), **own)


def curve(t):
    t.train()
    return torch.tensor([[h['loss'], h['grad_norm'], h['logps/chosen'], h['entropy'], h['num_tokens']] for h in t.state.log_history if 'loss' in h])


@pytest.mark.parametrize('lora', [False, True], ids=['', 'lora'])
def test_trainer_gives_the_same_numbers_without_its_shortcuts(tmp_path, lora):
    from dpo_nb.toy import load_toy_model
    from dpo_nb.diagnose.doctor import FirstLook
    peft = dict(peft_config=LoraConfig(r=4, target_modules=['q_proj', 'v_proj'])) if lora else {}
    fast, plain = trainer(tmp_path, load_toy_model(), **peft), trainer(tmp_path, load_toy_model(), cache_ref_log_probs=False, **peft)
    for m in filter(None, (plain.model, plain.ref_model)): share_prefix(m, False)
    for t in (fast, plain): t.remove_callback(FirstLook)  # which asks the reference once more
    asked, ask = [], fast.reference.fresh().scores
    fast.reference.fresh().scores = lambda *a: (asked.append(1), ask(*a))[1]
    a, b = curve(fast), curve(plain)
    assert len(a) == 6 and len(asked) == 2  # the two batches of the first epoch
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_sharing_is_refused_with_its_reason(tmp_path):
    from dpo_nb.toy import load_toy_model
    from dpo_nb.train.config import DPOConfig
    from dpo_nb.train.trainer import share_prompts
    config = lambda **kw: DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to='none', **kw)
    assert share_prompts([load_toy_model()], config(padding_free=True))[0].packed
    assert 'auxiliary loss' in share_prompts([make('qwen3 of experts')], config(router_aux_loss_coef=.01))[0].why_not_packed
    for kw, says in ((dict(disable_dropout=False), 'disable_dropout'), (dict(torch_compile=True), 'torch_compile')):
        with pytest.raises(ValueError, match=f'padding_free=True is not possible here: {says}'): share_prompts([load_toy_model()], config(padding_free=True, **kw))


TWO = '''
import json, os, sys
import torch, dpo_nb
from dpo_nb.model.prefix_sharing import shares_prefix
from dpo_nb.toy import load_toy_pairs, load_toy_tokenizer, toy_path
torch.set_num_threads(1)
checkpointing = sys.argv[1] == 'True'
args = dpo_nb.DPOConfig(sys.argv[2], use_cpu=True, bf16=False, report_to='none', save_strategy='no', disable_tqdm=True, logging_steps=1, max_steps=2, seed=1,
                        per_device_train_batch_size=int(sys.argv[3]), gradient_checkpointing=checkpointing, ddp_find_unused_parameters=not checkpointing)
t = dpo_nb.DPOTrainer(toy_path(), args=args, train_dataset=load_toy_pairs()['train'].select(range(16)), processing_class=load_toy_tokenizer())
t.train()
if t.accelerator.is_main_process: print('RESULT', json.dumps([shares_prefix(t.model)] + [[h['loss'], h['grad_norm'], h['num_tokens']] for h in t.state.log_history if 'loss' in h]))
if torch.distributed.is_initialized():
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # as in distributed_run.py
'''


def test_two_processes_give_what_one_gives(tmp_path, checkpointing=False):
    "The head's forward is replaced inside data-parallel training too, which must still find every weight's gradient."
    import json, socket, sys
    from conftest import run
    (tmp_path/'two.py').write_text(TWO)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    rest = [tmp_path/'two.py', checkpointing, tmp_path/'out']
    both = run(sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', 2, '--master_addr', '127.0.0.1', '--master_port', port, *rest, 2, OMP_NUM_THREADS='1')
    one = run(sys.executable, *rest, 4, OMP_NUM_THREADS='1')
    a, b = (json.loads(next(l for l in x.stdout.splitlines() if l.startswith('RESULT'))[7:]) for x in (both, one))
    assert a[0] is b[0] is True
    torch.testing.assert_close(torch.tensor(a[1:]), torch.tensor(b[1:]), rtol=1e-5, atol=1e-6)


# Trials of the fast way run while something is at stake: a new adapter does nothing yet, so its weights are moved for the trial.
class RowMean(torch.nn.Linear):
    "Adds to every token what is the mean of its row, which packing changes; with weights of zero it is silent."
    def forward(self, x): return super().forward(x)+super().forward(x.mean(1, keepdim=True))


class WrongSlope(torch.autograd.Function):
    "The numbers unchanged, and a gradient that is the mean of the row's."
    @staticmethod
    def forward(ctx, x): return x.view_as(x)

    @staticmethod
    def backward(ctx, g): return g.mean(1, keepdim=True).expand_as(g)


class SlopeOfTheRow(torch.nn.Linear):
    def forward(self, x): return WrongSlope.apply(super().forward(x))


@pytest.mark.parametrize('odd', [RowMean, SlopeOfTheRow])
def test_the_trial_of_shared_prompts_wakes_the_adapter(odd):
    torch.manual_seed(0)
    model = get_peft_model(MODELS['llama'](), LoraConfig(r=3, target_modules=['q_proj', 'v_proj'], task_type='CAUSAL_LM')).train()
    assert not cannot_share(model)
    for m in list(model.modules()):
        if hasattr(m, 'lora_B'): m.lora_B['default'].__class__ = odd
    before, state, modes = {k: w.clone() for k, w in model.state_dict().items()}, torch.get_rng_state(), [m.training for m in model.modules()]
    assert 'were off' in cannot_share(model)
    assert all(torch.equal(w, before[k]) for k, w in model.state_dict().items()) and torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes and all(w.grad is None for w in model.parameters())


def test_an_adapter_that_looks_for_tokens_in_the_row_is_not_packed(tmp_path):
    "aLoRA acts behind its invocation tokens; in a packed row it would find one place for all pairs."
    from dpo_nb.toy import load_toy_model, load_toy_pairs, load_toy_tokenizer
    tok = load_toy_tokenizer()
    start = tok('<|im_start|>assistant', add_special_tokens=False)['input_ids']
    config = LoraConfig(r=4, target_modules=['q_proj', 'v_proj'], task_type='CAUSAL_LM', alora_invocation_tokens=start)
    assert 'alora_invocation_tokens' in cannot_share(get_peft_model(load_toy_model(), config))
    from dpo_nb.model.prefix_sharing import shares_prefix
    t = trainer(tmp_path, load_toy_model(), peft_config=config, num_train_epochs=1)
    assert not shares_prefix(t.model) and 'alora_invocation_tokens' in t.plan.why_not_packed


class Silent(LlamaForCausalLM):
    "Divides its logits by 8, and its config does not say so."
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits/8
        return out


@pytest.mark.parametrize('name', ['llama', 'gemma2, window 4', 'gpt2'])
@pytest.mark.parametrize('lora', [False, True], ids=['', 'lora'])
def test_a_plan_changes_no_bit_and_can_be_shown(name, lora):
    from dpo_nb.model.forward import plan_forward, set_up_forward
    model = make(name, lora=lora)
    before, state = {k: w.clone() for k, w in model.state_dict().items()}, torch.get_rng_state()
    plan, = set_up_forward([model])
    assert plan.packed and plan.fused and 'without padding' in str(plan) and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(w, before[k]) for k, w in model.state_dict().items()) and all(m.training for m in model.modules())
    for seed in range(3):
        batch = draw(seed)
        ref = torch.zeros(len(batch['input_ids']))
        one, two = (loss_and_grads(model, score(model, batch, plan=p), ref) for p in (None, plan))
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert not plan_forward(model, share='for once').packed and plan_forward(model, batch=draw(1)) == plan


def test_a_plan_waits_for_the_first_batch_and_looks_again_at_a_wrapper(monkeypatch):
    from dpo_nb.model import forward
    torch.manual_seed(0)
    silent = Silent(LlamaConfig(**GROUPED)).eval()
    assert not forward.plan_forward(silent).fused and 'its config does not tell' in str(forward.plan_forward(silent))
    late = forward.plan_forward(silent, trial=False)
    assert late.fused and not late.seen
    want = plainly(silent, draw(0))
    assert torch.equal(score(silent, draw(0), plan=late).logps, want.logps) and not late.fused and 'Silent' in late.why_not_fused
    looked, look = [], forward.follows
    monkeypatch.setattr(forward, 'follows', lambda *a: looked.append(1) or look(*a))
    model = make('llama')
    plan = forward.plan_forward(model)
    looked.clear()
    for _ in range(2): score(model, draw(0), plan=plan)
    assert not looked  # it was settled when the plan was made
    monkeypatch.setattr(model, '_compiled_call_impl', model.forward)
    other = torch.nn.Module()  # a wrapper that comes later
    other.module = model
    monkeypatch.setattr(forward, 'bare', lambda m: getattr(m, 'module', m))
    other.forward = model.forward
    assert torch.equal(score(other, draw(0), plan=plan).logps, plainly(model, draw(0)).logps) and plan.why_not_fused == 'the model is compiled'
