"Tiny random models of many architectures train, with the same numbers as under TRL 1.16.0: soft-capped and scaled logits, biases, experts."
import math

import pytest, torch
from conftest import live_trl
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

import dpo_nb
from dpo_nb.toy import load_toy_tokenizer
from test_trl_trainer import first, load, run, same

pytestmark = pytest.mark.filterwarnings('ignore')
SIZE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, initializer_range=.1)
KV = SIZE | dict(num_key_value_heads=1, head_dim=16)
ARCHITECTURES = {  # model type, and what is special about it
    'llama': ('llama', KV), 'qwen2': ('qwen2', SIZE | dict(num_key_value_heads=1)), 'qwen3': ('qwen3', KV), 'mistral': ('mistral', KV | dict(sliding_window=8)),
    'gemma-2, soft-capped': ('gemma2', KV | dict(final_logit_softcapping=3., attn_logit_softcapping=5., sliding_window=8, query_pre_attn_scalar=16)),
    'gpt-2': ('gpt2', dict(n_embd=32, n_layer=2, n_head=2, n_positions=256, initializer_range=.1)),
    'gpt-neox': ('gpt_neox', SIZE), 'phi, biased head': ('phi', SIZE), 'opt': ('opt', dict(hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=256, init_std=.1, dropout=0.)),  # its dropout is a function's, which TRL leaves on
   
    'cohere, scaled logits': ('cohere', SIZE | dict(num_key_value_heads=1, logit_scale=.5)), 'granite, scaled logits': ('granite', SIZE | dict(num_key_value_heads=1, logits_scaling=4.)),
    'mixtral': ('mixtral', KV | dict(num_local_experts=4, num_experts_per_tok=2)),
    'qwen3 with experts': ('qwen3_moe', KV | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1)),
}
CASES = {k: {} for k in ARCHITECTURES} | {
    'gemma-2, soft-capped, lora': dict(peft_config=LoraConfig(r=4, target_modules=['q_proj', 'v_proj'])),
    'gpt-2, lora': dict(peft_config=LoraConfig(r=4, target_modules=['c_attn'], fan_in_fan_out=True)),
    'mixtral, coefficient 0.5': dict(router_aux_loss_coef=.5), 'mixtral, coefficient 0': dict(router_aux_loss_coef=0.),
    'mixtral, lora': dict(peft_config=LoraConfig(r=4, target_modules=['q_proj', 'v_proj']), router_aux_loss_coef=.1, optim='sgd', learning_rate=.5),
    'mixtral, precomputed': dict(precompute_ref_log_probs=True)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A function that saves a random model of an architecture, once, and gives its folder."
    made = {}
    def make(name):
        kind = max((k for k in ARCHITECTURES if name.startswith(k)), key=len)
        if kind not in made:
            torch.manual_seed(0)
            model_type, size = ARCHITECTURES[kind]
            tok, made[kind] = load_toy_tokenizer(), str(tmp_path_factory.mktemp('model'))
            ids = dict(bos_token_id=tok.eos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
            m = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, vocab_size=len(tok), tie_word_embeddings=False, **ids, **size))
            for k, w in m.named_parameters():
                if k.endswith('lm_head.bias'): w.data.normal_()
            m.save_pretrained(made[kind])
        return made[kind]
    return make


@pytest.mark.parametrize('case', CASES)
def test_every_number_equals_trl(case, folder, tmp_path):
    trl = live_trl('trl')
    kw = dict(max_steps=5, gradient_checkpointing=False) | CASES[case]
    ours, theirs = (run(lib, folder(case), tmp_path, **kw) for lib in (dpo_nb, trl))
    same(ours, theirs)
    aux = first(ours).get('aux_loss')
    assert (aux is None) == ('aux_loss' not in first(theirs)) and (aux is not None) == (('mixtral' in case or 'experts' in case) and CASES[case].get('router_aux_loss_coef') != 0)
    assert len({h['rewards/margins'] for h in ours if 'loss' in h}) > 1


@pytest.mark.parametrize('kind', ['gemma-2, soft-capped', 'cohere, scaled logits', 'granite, scaled logits', 'phi, biased head', 'gpt-2'])
def test_logged_logps_are_those_of_the_models_own_logits(kind, folder, tmp_path):
    "Against the logits that the model itself returns, soft cap, scale and bias included."
    args = dpo_nb.DPOConfig(str(tmp_path), bf16=False, use_cpu=True, report_to='none', disable_tqdm=True, max_steps=1)
    from test_trl_trainer import rows
    t = dpo_nb.DPOTrainer(folder(kind), args=args, train_dataset=rows(n=4), processing_class=load_toy_tokenizer())
    got = t.predict(rows(n=4))
    for i, r in enumerate(t.train_dataset):
        ids = torch.tensor([r['prompt_ids'] + r['chosen_ids']])
        with torch.no_grad(): logp = load(folder(kind)).eval()(ids).logits.log_softmax(-1)
        want = logp[0, len(r['prompt_ids'])-1:-1].gather(1, ids[0, len(r['prompt_ids']):, None]).sum().item()
        assert got.predictions[i, :, 0].sum() == pytest.approx(want, rel=1e-4)


def test_a_coefficient_for_a_model_without_experts_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match='has no router'): run(dpo_nb, folder('llama'), tmp_path, router_aux_loss_coef=.1)
