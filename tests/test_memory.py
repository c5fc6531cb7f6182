"The count of memory holds together for every kind of model: more of anything never takes less, and no model is refused."
import pytest, torch
from peft import LoraConfig, get_peft_model
from transformers import (BloomConfig, BloomForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
                          Qwen3MoeConfig, Qwen3MoeForCausalLM)

from dpo_nb.model.memory import largest_batch, layer_bytes, peak_memory, step_moments

pytestmark = pytest.mark.filterwarnings('ignore')  # PEFT announces what it did not match

SIZE = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=500)
MODELS = {
    'llama': lambda: LlamaForCausalLM(LlamaConfig(**SIZE)),
    'llama, tied, few keys': lambda: LlamaForCausalLM(LlamaConfig(**SIZE, num_key_value_heads=1, tie_word_embeddings=True)),
    'gemma2': lambda: Gemma2ForCausalLM(Gemma2Config(**SIZE, num_key_value_heads=2, head_dim=16)),
    'experts': lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZE, num_key_value_heads=2, num_experts=4)),
    'gpt2': lambda: GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=500)),
    'bloom': lambda: BloomForCausalLM(BloomConfig(hidden_size=64, n_layer=3, n_head=4, vocab_size=500)),
}


def total(*args, **kw): return sum(peak_memory(*args, **kw).values())


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('bf16', [False, True])
def test_more_of_anything_never_takes_less(name, bf16):
    with torch.device('meta'): model = MODELS[name]()
    pairs, n = [(30, 20, 10), (5, 5, 5)], sum(p.numel() for p in model.parameters())
    one = total(model, pairs, bf16=bf16)
    assert 16*n <= one == total(model, pairs[::-1], bf16=bf16)
    for more in (dict(checkpointing=False), dict(reference=1000)): assert total(model, pairs, bf16=bf16, **more) >= one
    for longer in ([(31, 20, 10), (5, 5, 5)], [(30, 20, 11), (5, 5, 5)], pairs+[(1, 1, 1)]): assert total(model, longer, bf16=bf16) >= one
    assert total(model, [(60, 40, 20)]*64, bf16=bf16) < total(model, [(60, 40, 20)]*64, bf16=bf16, checkpointing=False)
    assert all(set(m) == set(peak_memory(model, pairs)) for m in step_moments(model, pairs).values())
    with torch.device('meta'): adapted = get_peft_model(model, LoraConfig(r=2, target_modules='all-linear', task_type='CAUSAL_LM'))
    assert total(adapted, pairs, bf16=bf16) < one


def test_sharing_the_prompt_never_takes_more():
    c = LlamaConfig(**SIZE)
    for p, a, b in ((50, 9, 9), (0, 9, 4), (7, 0, 3)):
        rows = [dict(prompt_ids=[0]*p, chosen_ids=[0]*a, rejected_ids=[0]*b)]*3
        shared, padded = (largest_batch(rows, 2, shared=s)[0] for s in (True, False))
        assert sum(map(sum, shared)) <= sum(map(sum, padded)) and layer_bytes(c, shared) <= layer_bytes(c, padded)
