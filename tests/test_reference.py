"The reference on many architectures: no dropout is left anywhere, and the copy answers as the model does."
import json

import pytest, torch
from peft import IA3Config, LNTuningConfig, LoraConfig, VeraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_nb.reference.copies import add_ref_adapter, changes_base, disable_dropout, frozen_copy, ref_adapter
from dpo_nb.toy import load_toy_model

ARCHITECTURES = '''llama qwen2 qwen3 mistral gemma gemma2 gemma3_text phi phi3 gpt2 gpt_neo gpt_neox gptj gpt_bigcode opt bloom falcon persimmon
    olmo olmo2 olmoe stablelm starcoder2 cohere granite mixtral smollm3 glm4 mpt biogpt xglm nemotron mamba'''.split()
NO_DROPOUT = {'mpt', 'mamba'}  # their code has none, whatever the config says
SIZES = dict(hidden_size=16, n_embd=16, d_model=16, word_embed_proj_dim=16, intermediate_size=32, ffn_dim=32, num_hidden_layers=2, n_layer=2,
             n_layers=2, num_layers=2, num_attention_heads=2, n_head=2, n_heads=2, num_heads=2, attention_heads=2, num_key_value_heads=2, head_dim=8,
             rotary_dim=4, vocab_size=64, max_position_embeddings=64, n_positions=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)


def build(kind, rate=0.5):
    "A tiny random model of the architecture with every dropout rate of its config at `rate`."
    torch.manual_seed(0)
    c = AutoConfig.for_model(kind)
    for k, v in SIZES.items():
        if hasattr(c, k) and getattr(getattr(type(c), k, None), 'fset', True): setattr(c, k, v)  # Falcon computes its head_dim
    for k, v in c.to_dict().items():
        if 'drop' in k and isinstance(v, (int, float)) and not isinstance(v, bool): setattr(c, k, rate)
    if kind == 'gpt_neo': c.attention_types, c.attention_layers = [[['global'], 2]], ['global']*2
    return AutoModelForCausalLM.from_config(c)


def logits(m, seed=0):
    torch.manual_seed(seed)
    x = torch.arange(3, 19).view(2, 8)
    with torch.no_grad(): return m(input_ids=x, attention_mask=torch.ones_like(x), use_cache=False).logits


@pytest.mark.parametrize('kind', ARCHITECTURES)
def test_no_dropout_is_left_and_the_config_keeps_its_rates(kind):
    m = build(kind).train()
    saved = m.config.to_json_string()
    assert torch.equal(logits(m, 1), logits(m, 2)) == (kind in NO_DROPOUT)  # the test can see dropout
    off = disable_dropout(m)
    assert bool(off) == (kind not in NO_DROPOUT) and len(set(off)) == len(off)
    assert torch.equal(logits(m, 1), logits(m, 2)) and torch.equal(logits(m, 1), logits(m.eval()))
    assert m.config.to_json_string() == saved and disable_dropout(m) == []


@pytest.mark.parametrize('kind', ['llama', 'qwen2', 'gpt2', 'gpt_neox', 'opt', 'mamba'])
def test_the_copy_is_the_model_and_nothing_is_shared(kind):
    m = build(kind).train()
    disable_dropout(m)
    ref = frozen_copy(m)
    assert torch.equal(logits(m), logits(ref)) and m.training and not ref.training
    assert not {w.data_ptr() for w in m.parameters()} & {w.data_ptr() for w in ref.parameters()}
    assert len({w.data_ptr() for w in m.parameters()}) == len({w.data_ptr() for w in ref.parameters()})  # tied stays tied
    assert all(w.requires_grad for w in m.parameters()) and not any(w.requires_grad for w in ref.parameters())


def test_rates_read_from_the_config_are_saved_as_they_were(tmp_path):
    m = build('falcon')
    disable_dropout(m)
    m.save_pretrained(tmp_path)
    assert json.loads((tmp_path/'config.json').read_text())['hidden_dropout'] == 0.5
    assert m.transformer.h[0].config.hidden_dropout == 0. and m.transformer.config is m.config


ADAPTERS = {
    'lora': LoraConfig(r=4, target_modules=['q_proj', 'v_proj']),
    'lora on embeddings': LoraConfig(r=4, target_modules=['embed_tokens', 'q_proj']),  # a ParameterDict: the adapter's name ends the weight's
    'lora and a whole module': LoraConfig(r=4, target_modules=['q_proj'], modules_to_save=['norm']),
    'dora': LoraConfig(r=4, target_modules=['q_proj'], use_dora=True),
    'ia3': IA3Config(target_modules=['k_proj', 'down_proj'], feedforward_modules=['down_proj']),
    'vera': VeraConfig(r=4, target_modules=['q_proj', 'v_proj']),
    'layer norms': LNTuningConfig(target_modules=['input_layernorm']),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ['default', 'sft'])
@pytest.mark.parametrize('kind', ADAPTERS)
def test_a_continued_adapter_is_its_own_reference(kind, name):
    torch.manual_seed(0)
    m = get_peft_model(load_toy_model(), ADAPTERS[kind], adapter_name=name)
    base = logits(m.eval())
    for w in m.parameters():
        if w.requires_grad: w.data += 0.1*torch.randn_like(w)
    before, trained = logits(m), [k for k, w in m.named_parameters() if w.requires_grad]
    add_ref_adapter(m)
    assert [k for k, w in m.named_parameters() if w.requires_grad] == trained
    for w in m.parameters():
        if w.requires_grad: w.data += 0.1*torch.randn_like(w)
    with ref_adapter(m): assert torch.equal(logits(m), before)
    assert not torch.equal(before, base) and not torch.equal(logits(m), before) and m.active_adapter == name
    assert [k for k, w in m.named_parameters() if w.requires_grad] == trained


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('init', [True, 'gaussian', 'olora', 'pissa', 'orthogonal'])
def test_new_adapters_that_take_weights_out_of_the_base_need_a_copy(init):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=['q_proj', 'v_proj'], init_lora_weights=init)
    m = get_peft_model(load_toy_model(), config).eval()
    now = logits(m)
    if changes_base(config): add_ref_adapter(m)
    with ref_adapter(m): assert torch.equal(logits(m), now)
    assert changes_base(config) == (init in ('olora', 'pissa', 'orthogonal'))


# What must not move the reference: weights that are trained without belonging to an adapter, noise, weights shared with the policy.
from types import SimpleNamespace
from dpo_nb.model.load import load_model, check_adapter, trained_base
from dpo_nb.reference.copies import draws_noise, hold_still, mark_trained, reference_mode, was_trained

RUN = dict(fsdp=None, deepspeed=None, precompute_ref_log_probs=False, neftune_noise_alpha=None)


def biased(bias, kind='qwen2'):
    torch.manual_seed(0)
    return get_peft_model(build(kind, 0.), LoraConfig(r=2, target_modules=['q_proj', 'v_proj'], bias=bias, task_type='CAUSAL_LM'))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('bias', ['all', 'lora_only', 'none'])
@pytest.mark.parametrize('continued', [False, True])
def test_trained_biases_do_not_act_in_the_reference(bias, continued):
    m = biased(bias)
    if continued:
        for w in m.parameters():
            if w.requires_grad: w.data += .1*torch.randn_like(w)
        add_ref_adapter(m)
    with reference_mode(m): before = logits(m)
    said, trained = hold_still(m, None, SimpleNamespace(**RUN)), [w for w in m.parameters() if w.requires_grad]
    assert bool(said) == (bias != 'none') == bool(trained_base(m))
    opt = torch.optim.SGD(trained, lr=1.)
    x = torch.arange(3, 19).view(2, 8)
    for _ in range(2):
        m(input_ids=x, labels=x).loss.backward(); opt.step(); opt.zero_grad()
    now = logits(m)
    with reference_mode(m): assert torch.equal(logits(m), before)
    assert torch.equal(logits(m), now) and not torch.equal(now, before)
    with reference_mode(m), pytest.raises(RuntimeError, match='x'): raise RuntimeError('x')
    assert torch.equal(logits(m), now)


@pytest.mark.filterwarnings('ignore')
def test_trained_biases_are_refused_where_weights_are_sharded():
    with pytest.raises(ValueError, match="bias='none'"): hold_still(biased('all'), None, SimpleNamespace(**RUN | dict(fsdp='full_shard')))
    assert hold_still(biased('all'), None, SimpleNamespace(**RUN | dict(precompute_ref_log_probs=True))) == []  # asked before training


@pytest.mark.filterwarnings('ignore')
def test_noise_in_the_policy_does_not_reach_the_reference():
    from transformers.integrations.neftune import activate_neftune
    m = get_peft_model(build('llama'), LoraConfig(r=2, target_modules=['q_proj'])).train()
    activate_neftune(m, 5.)
    assert not torch.equal(logits(m, 1), logits(m, 2)) and draws_noise(m) == ''
    with reference_mode(m): assert torch.equal(logits(m, 1), logits(m, 2))
    assert all(x.training for x in m.modules())


@pytest.mark.parametrize('switch', [False, True])
def test_noise_in_eval_mode_is_refused_by_name(switch):
    m = build('llama', 0.)
    m.model.layers[1].mlp.register_forward_hook(lambda module, args, out: out*(1+.01*torch.randn_like(out)))
    state = torch.get_rng_state()
    assert draws_noise(m, switch) == 'model.layers.1.mlp' and torch.equal(torch.get_rng_state(), state)
    assert not m.model.layers[0]._forward_hooks and len(m.model.layers[1].mlp._forward_hooks) == 1
    with pytest.raises(ValueError, match=r'layers\.1\.mlp draws noise'): hold_still(build('llama', 0.), m, SimpleNamespace(**RUN))


@pytest.mark.filterwarnings('ignore')
def test_weights_shared_with_the_policy_and_models_trained_before():
    base = build('llama', 0.)
    with pytest.raises(ValueError, match='shares 1 trained weights' if base.config.tie_word_embeddings else 'shares'):
        m = build('llama', 0.)
        m.lm_head = base.lm_head
        hold_still(base, m, SimpleNamespace(**RUN))
    assert not was_trained(base) and hold_still(base, frozen_copy(base), SimpleNamespace(**RUN)) == []
    mark_trained(base)
    assert was_trained(frozen_copy(base)) and 'earlier trainer' in hold_still(base, frozen_copy(base), SimpleNamespace(**RUN))[0]
    assert hold_still(base, frozen_copy(base), SimpleNamespace(**RUN), ref_given=True) == []


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', ADAPTERS)
def test_no_kind_of_adapter_acts_in_the_reference(kind):
    assert hold_still(get_peft_model(load_toy_model(), ADAPTERS[kind]), None, SimpleNamespace(**RUN)) == []


@pytest.mark.parametrize('names', [['torch_dtype'], ['dtype'], ['torch_dtype', 'dtype']])
@pytest.mark.parametrize('value', ['bfloat16', torch.bfloat16])
def test_both_names_of_the_dtype_count(names, value):
    from dpo_nb.toy import toy_path
    args = SimpleNamespace(model_init_kwargs={k: value for k in names}, trust_remote_code=False)
    assert load_model(str(toy_path()), args).dtype == torch.bfloat16
    if len(names) == 2:
        with pytest.raises(ValueError, match='give dtype alone'): load_model(str(toy_path()), SimpleNamespace(model_init_kwargs=dict(torch_dtype=value, dtype='float16'), trust_remote_code=False))


@pytest.mark.filterwarnings('ignore')
def test_a_native_adapter_is_not_trained_with_its_base(tmp_path):
    get_peft_model(load_toy_model(), LoraConfig(r=2, target_modules=['q_proj'], task_type='CAUSAL_LM')).save_pretrained(tmp_path)
    native = AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match='AutoPeftModelForCausalLM.*is_trainable=True'): check_adapter(native)
    with pytest.raises(ValueError, match='weights of its base.*AutoPeftModelForCausalLM'): check_adapter(native.requires_grad_(True))
    for k, w in native.named_parameters(): w.requires_grad_('lora_' in k)
    check_adapter(native)
