"""Scripts move over by changing an import: the ways in which scripts use TRL's trainer, beside TRL 1.16.0 itself.

The patterns were met in public scripts, notebooks and issues; each is written anew here, as small as it can be. What TRL 1.16.0 runs must log
the same numbers; what it refuses, or takes and then ignores, must be refused in words that say what replaced it."""
import importlib, json, math
from dataclasses import dataclass, field, fields
from functools import cache

import pytest, torch
from conftest import live_trl
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, HfArgumentParser, TrainerCallback, TrainingArguments

import dpo_nb
from dpo_nb.toy import load_toy_pairs, load_toy_tokenizer
from dpo_nb.train.hints import moved_imports, moved_methods, renamed, stays_in_trl

trl = live_trl('trl')
pytestmark = [pytest.mark.filterwarnings('ignore')]
tok, LORA = load_toy_tokenizer, dict(r=4, target_modules=['q_proj', 'v_proj'], task_type='CAUSAL_LM')
CPU = dict(max_steps=2, per_device_train_batch_size=2, per_device_eval_batch_size=4, learning_rate=1e-2, logging_steps=1, bf16=False, use_cpu=True, save_strategy='no',
           report_to='none', disable_tqdm=True, seed=1)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "A folder with a random Llama of two layers that knows the toy tokenizer's words."
    torch.manual_seed(0)
    c = AutoConfig.for_model('llama', vocab_size=len(tok()), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                             initializer_range=.1, tie_word_embeddings=False)
    folder = tmp_path_factory.mktemp('tiny')
    AutoModelForCausalLM.from_config(c).save_pretrained(folder), tok().save_pretrained(folder)
    return str(folder)


@cache
def rows(split='train', n=12): return load_toy_pairs()[split].select(range(n)).select_columns(['prompt', 'chosen', 'rejected'])


class Script:
    "What a script has at hand, with one library or the other."
    def __init__(self, lib, tiny, out): self.lib, self.tiny, self.out, self.DPOTrainer, self.DPOConfig = lib, tiny, str(out/lib.__name__), lib.DPOTrainer, lib.DPOConfig
    def model(self, **kw): return AutoModelForCausalLM.from_pretrained(self.tiny, **(dict(dtype=torch.float32) | kw))
    def args(self, **kw): return self.DPOConfig(self.out, **(CPU | kw))
    def make(self, cls=None, model=None, data=None, evals=None, own=(), **kw):
        return (cls or self.DPOTrainer)(model or self.model(), args=self.args(**kw), train_dataset=rows() if data is None else data, eval_dataset=evals, processing_class=tok(), **dict(own))
    def train(self, *args, then=None, **kw):
        t = self.make(*args, **kw)
        t.train()
        return t, then(t) if then else {}


# --- what TRL 1.16.0 runs

def a_loss_of_ones_own(s):
    class Hinge(s.DPOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            ids, mask = inputs['input_ids'], inputs['completion_mask'][:, 1:]
            def sums(m): return (m(input_ids=ids, attention_mask=inputs['attention_mask']).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)*mask).sum(1)
            with torch.no_grad(): ref = sums(self.ref_model)
            chosen, rejected = (sums(model) - ref).chunk(2)
            return torch.relu(1 - self.beta*(chosen - rejected)).mean()
    return s.train(Hinge)


def a_term_and_a_metric_more(s):
    class More(s.DPOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            self._metrics['train' if self.model.training else 'eval']['own/term'].append(1.5)
            return super().compute_loss(model, inputs, return_outputs) + .01*sum(p.pow(2).sum() for p in model.parameters())
    t, _ = s.train(More)
    return t, dict(own=[h['own/term'] for h in t.state.log_history if 'loss' in h])


def rows_prepared_elsewhere(s):
    def tokens(r): return dict(prompt_ids=tok()(r['prompt'][0]['content'])['input_ids'], **{f'{k}_ids': tok()(r[k][0]['content'])['input_ids'][:9] + [tok().eos_token_id] for k in ('chosen', 'rejected')})
    class Ready(s.DPOTrainer):
        def _prepare_dataset(self, dataset, processing_class, args, dataset_name): return dataset.map(tokens)
    return s.train(Ready, evals=rows('test', 4), eval_strategy='steps', eval_steps=2)


def fewer_rows(s):
    class Few(s.DPOTrainer):
        def _prepare_dataset(self, dataset, processing_class, args, mode): return super()._prepare_dataset(dataset.select(range(6)), processing_class, args, mode)
    t, _ = s.train(Few)
    return t, dict(n=len(t.train_dataset))


class Schedule(TrainerCallback):
    def on_step_begin(self, args, state, control, **kw): self.trainer.beta = (.5, .2, .05)[state.global_step]


def beta_from_a_callback(s):
    c = Schedule()
    c.trainer = s.make(own=dict(callbacks=[c]), max_steps=3)
    c.trainer.train()
    return c.trainer, dict(beta=c.trainer.beta)


def smoothing_set_afterwards(s):
    t = s.make(loss_type='robust', label_smoothing=.1)
    t.label_smoothing = .3
    t.train()
    return t, {}


def settings_read_at_the_trainer(s):
    t = s.make(loss_type=['sigmoid', 'sft'], loss_weights=[1., .5], f_divergence_type='js_divergence', ld_alpha=.5)
    names = ('beta', 'loss_types', 'loss_weights', 'label_smoothing', 'f_divergence_type', 'f_alpha_divergence_coef', 'use_weighting', 'ld_alpha', 'precompute_ref_logps', '_is_vision_dataset')
    return t, {k: getattr(t, k) for k in names} | dict(collator=type(t.data_collator).__name__, ref=t.ref_model.training, pad=t.processing_class.pad_token)


def the_reference_asked_by_hand(s):
    t = s.make(evals=rows('test', 4))
    batch = t._prepare_inputs(next(iter(t.get_train_dataloader())))
    told, loss = t.compute_ref_log_probs(t.ref_model, batch), t.compute_loss(t.model, batch)
    loss.backward()
    return t, dict(chosen=told[0].sum().item(), rejected=told[1].sum().item(), loss=loss.item(), gradient=sum(p.grad.abs().sum().item() for p in t.model.parameters()), held=t.evaluate()['eval_loss'])


def a_shifted_reference(s):
    class Shifted(s.DPOTrainer):
        def compute_ref_log_probs(self, model, inputs): return [x + d for x, d in zip(super().compute_ref_log_probs(model, inputs), (1, 0))]
    return s.train(Shifted, precompute_ref_log_probs=True, data=rows('test', 8))


def a_collator_that_reads_other_columns(s):
    def collate(examples):
        whole = [(e['prompt_ids'], e[k]) for k in ('chosen_ids', 'rejected_ids') for e in examples]
        width = max(len(p) + len(a) + e['id']//100 for e in examples for p, a in whole)
        def fill(f): return torch.tensor([(f(p, a) + [0]*width)[:width] for p, a in whole])
        return dict(input_ids=fill(lambda p, a: p + a), attention_mask=fill(lambda p, a: [1]*len(p + a)), completion_mask=fill(lambda p, a: [0]*len(p) + [1]*len(a)))
    return s.train(data=rows().add_column('id', list(range(12))), own=dict(data_collator=collate), remove_unused_columns=False)


def a_weight_from_the_collator(s):
    base = s.lib.DataCollatorForPreference if s.lib is dpo_nb else importlib.import_module('trl.trainer.dpo_trainer').DataCollatorForPreference
    class Weighs(base):
        def torch_call(self, examples): return super().torch_call(examples) | dict(w=torch.tensor([e['w'] for e in examples]))
    class Weighted(s.DPOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None): return inputs.pop('w').mean()*super().compute_loss(model, inputs, return_outputs)
    return s.train(Weighted, data=rows().add_column('w', [.5, 1.5]*6), own=dict(data_collator=Weighs(pad_token_id=0)), remove_unused_columns=False)


def a_config_with_more_fields(s):
    @dataclass
    class Mine(s.DPOConfig):
        scale: float = field(default=1.)
        def __post_init__(self):
            super().__post_init__()
            self.scale *= 2
    class Scaled(s.DPOTrainer):
        def __init__(self, *args, offset=0., **kw):
            super().__init__(*args, **kw)
            self.offset = offset
        def compute_loss(self, model, inputs, **kw): return self.args.scale*super().compute_loss(model, inputs, **kw) + self.offset
    t = Scaled(s.model(), None, Mine(s.out, scale=1.5, **CPU), train_dataset=rows(), processing_class=tok(), offset=.25)
    t.train()
    return t, {}


def the_end_of_a_handbook_script(s):
    t = s.make(evals=rows('test', 4), do_eval=True, eval_strategy='steps', eval_steps=2)
    metrics = t.train().metrics
    t.log_metrics('train', metrics), t.save_metrics('train', metrics), t.save_state()
    held = t.evaluate()
    t.log_metrics('eval', held), t.save_metrics('eval', held), t.save_model(s.out), t.create_model_card(model_name='mine', dataset_name='me/pairs', tags=['own'])
    t.model.config.use_cache = True
    t.model.config.save_pretrained(s.out)
    again = AutoModelForCausalLM.from_pretrained(s.out)
    return t, dict(held=held['eval_loss'], loss=metrics['train_loss'], keys=sorted(metrics), logit=again(torch.tensor([[3, 4, 5]])).logits.sum().item())


def an_adapter_merged_and_used(s):
    t, _ = s.train(own=dict(peft_config=LoraConfig(**LORA)))
    t.save_model(s.out)
    saved = json.loads(open(f'{s.out}/adapter_config.json').read())
    merged, x = t.model.merge_and_unload().eval(), torch.tensor([[3, 4, 5]])
    return t, dict(r=saved['r'], task=saved['task_type'], logit=merged(x).logits.sum().item(), said=merged.generate(x, max_new_tokens=3, do_sample=False).tolist())


def an_adapter_trained_further(s):
    torch.manual_seed(2)
    m = get_peft_model(s.model(), LoraConfig(**LORA))
    for w in m.parameters():
        if w.requires_grad: w.data += .05*torch.randn_like(w)
    m.save_pretrained(s.out + '-sft')
    t, _ = s.train(model=PeftModel.from_pretrained(s.model(), s.out + '-sft', is_trainable=True))
    return t, dict(adapters=sorted(t.model.peft_config), active=t.model.active_adapter)


def resumed_from_the_newest(s):
    kw = dict(save_strategy='steps', save_steps=1, save_total_limit=1)
    s.train(**kw)
    t = s.make(**kw, max_steps=4)
    t.train(resume_from_checkpoint=True)
    return t, {}


def noise_on_the_embeddings(s): return s.train(neftune_noise_alpha=5.)


def trl_callbacks(s):
    t = s.make(evals=rows('test', 4), own=dict(ref_model=s.model()), ref_model_sync_steps=1, eval_strategy='steps', eval_steps=2)
    t.add_callback(trl.SyncRefModelCallback(ref_model=t.ref_model, accelerator=t.accelerator)), t.add_callback(trl.LogCompletionsCallback(t, num_prompts=1, freq=1))
    t.add_callback(trl.BEMACallback(update_freq=1))
    t.train()
    return t, {}


def again_and_again(s, callback, **kw):
    "Two rows, four steps: whatever is remembered of the reference is asked for again."
    t = s.make(data=rows('train', 2), max_steps=4, **kw)
    callback.trainer = t
    t.add_callback(callback), t.train()
    return t, {}


class Copied(TrainerCallback):
    def on_epoch_end(self, args, state, control, model=None, **kw): self.trainer.ref_model.load_state_dict(model.state_dict())


class AdapterCopied(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kw):
        weights = dict(model.named_parameters())
        for k, w in weights.items():
            if '.ref.' in k: w.data.copy_(weights[k.replace('.ref.', '.default.')].data)


def a_reference_that_trls_callback_moves(s):
    t = s.make(data=rows('train', 2), max_steps=4, own=dict(ref_model=s.model()), ref_model_sync_steps=1)
    t.add_callback(trl.SyncRefModelCallback(ref_model=t.ref_model, accelerator=t.accelerator)), t.train()
    return t, {}


def a_reference_that_is_copied_over(s): return again_and_again(s, Copied())
def an_adapter_that_is_copied_over(s): return again_and_again(s, AdapterCopied(), model=PeftModel.from_pretrained(s.model(), adapter(s), is_trainable=True))


def adapter(s):
    torch.manual_seed(3)
    m = get_peft_model(s.model(), LoraConfig(**LORA))
    for w in m.parameters():
        if w.requires_grad: w.data += .05*torch.randn_like(w)
    m.save_pretrained(s.out + '-adapter')
    return s.out + '-adapter'


def with_the_parser_of_transformers(s):
    parser = HfArgumentParser((trl.ScriptArguments, s.DPOConfig, trl.ModelConfig))
    flags = {k: v for k, v in CPU.items() if not isinstance(v, bool)} | dict(output_dir=s.out, model_name_or_path=s.tiny, dataset_name='x', beta=.2, loss_type='sigmoid', model_init_kwargs='{"attn_implementation": "eager"}')
    _, c, m = parser.parse_args_into_dataclasses([x for k, v in flags.items() for x in (f'--{k}', str(v))] + ['--use_cpu', '--bf16', 'False', '--gradient_checkpointing', 'false'])
    t = s.DPOTrainer(m.model_name_or_path, args=c, train_dataset=rows(), processing_class=tok())
    t.train()
    return t, dict(beta=c.beta, loss=c.loss_type, kwargs=c.model_init_kwargs, checkpointing=c.gradient_checkpointing)


YAML = """dataset_name: x
beta: 0.3
max_steps: 2
per_device_train_batch_size: 2
use_cpu: true
bf16: false
report_to: none
learning_rate: 1.0e-2
logging_steps: 1
use_peft: true
lora_r: 4
lora_target_modules: [q_proj, v_proj]
save_strategy: 'no'
loss_type: [sigmoid, sft]
loss_weights: [1.0, 0.5]
gradient_checkpointing_kwargs:
  use_reentrant: false
"""


def with_the_parser_of_trl(s):
    path = f'{s.out}.yaml'
    with open(path, 'w') as f: f.write(f'{YAML}model_name_or_path: {s.tiny}\noutput_dir: {s.out}\n')
    _, c, m = trl.TrlParser((trl.ScriptArguments, s.DPOConfig, trl.ModelConfig)).parse_args_and_config(['--config', path, '--beta', '0.2'])
    t = s.DPOTrainer(m.model_name_or_path, args=c, train_dataset=rows(), peft_config=trl.get_peft_config(m), quantization_config=trl.get_quantization_config(m))
    t.train()
    return t, dict(beta=c.beta, loss=c.loss_type, weights=c.loss_weights, kwargs=c.gradient_checkpointing_kwargs)


RUNS = [a_loss_of_ones_own, a_term_and_a_metric_more, rows_prepared_elsewhere, fewer_rows, beta_from_a_callback, smoothing_set_afterwards, settings_read_at_the_trainer, the_reference_asked_by_hand,
        a_shifted_reference, a_collator_that_reads_other_columns, a_weight_from_the_collator, a_config_with_more_fields, the_end_of_a_handbook_script, an_adapter_merged_and_used,
        an_adapter_trained_further, resumed_from_the_newest, noise_on_the_embeddings, trl_callbacks, a_reference_that_trls_callback_moves,
        a_reference_that_is_copied_over, an_adapter_that_is_copied_over, with_the_parser_of_transformers, with_the_parser_of_trl]


def alike(a, b): return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) if isinstance(a, float) and isinstance(b, float) else type(a) is type(b) and all(map(alike, a, b)) if isinstance(a, list) and a and isinstance(a[0], float) else a == b


@pytest.mark.parametrize('script', RUNS, ids=lambda f: f.__name__)
def test_the_same_script_logs_the_same_numbers(script, tiny, tmp_path):
    (ours, mine), (theirs, other) = (script(Script(lib, tiny, tmp_path)) for lib in (dpo_nb, trl))
    assert [h['step'] for h in ours.state.log_history] == [h['step'] for h in theirs.state.log_history]
    for a, b in zip(ours.state.log_history, theirs.state.log_history):
        missing = {k for k in b if k not in a}
        assert not missing, missing
        for k in ('loss', 'eval_loss', 'grad_norm'):
            if k in b: assert math.isclose(a[k], b[k], rel_tol=1e-3, abs_tol=1e-4), (a['step'], k, a[k], b[k])
    assert set(mine) == set(other) and all(alike(mine[k], other[k]) for k in mine), (mine, other)


def test_both_command_lines_read_one_file(tiny, tmp_path):
    from dpo_nb.run.cli import parse
    path = tmp_path/'run.yaml'
    path.write_text(f'{YAML}model_name_or_path: {tiny}\noutput_dir: {tmp_path/"out"}\n')
    theirs = trl.TrlParser((trl.ScriptArguments, trl.DPOConfig, trl.ModelConfig)).parse_args_and_config(['--config', str(path), '--beta', '0.2'])
    ours = parse(['--config', str(path), '--beta', '0.2'])
    for a, b in ((ours[0], theirs[0]), (ours[1], theirs[2]), (ours[2], theirs[1])):
        shared = {f.name for f in fields(a)} & {f.name for f in fields(b)} - {'logging_dir'}
        assert len(shared) > 4 and not (other := [(k, x, y) for k in shared if (x := getattr(a, k)) != (y := getattr(b, k)) and str(x) != str(y)]), other


# --- what it refuses, or takes and ignores

def overriding(name): return lambda s: s.train(type('Custom', (s.DPOTrainer,), {name: lambda self, *args, **kw: None}))
def argument(**kw): return lambda s: s.make(own=kw)
def setting(**kw): return lambda s: s.args(**kw)
def attribute(name): return lambda s: getattr(s.make(), name)
def imported(name): return lambda s: exec(f'from {s.lib.__name__} import {name}')
def loss_without_a_name(s):
    class Old(s.DPOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False): return super().compute_loss(model, inputs, return_outputs)
    return s.train(Old)


refuse, ignore, take = 'refuses', 'ignores', 'takes'
REFUSED = {  # what a script does → (how, what TRL 1.16.0 makes of it, what we say)
    'TrainingArguments': (lambda s: s.DPOTrainer(s.model(), args=TrainingArguments(s.out, use_cpu=True, report_to='none'), train_dataset=rows(), processing_class=tok()), refuse, 'args must be a dpo_nb.DPOConfig, got TrainingArguments'),
    'a dict of arguments': (lambda s: s.DPOTrainer(s.model(), args=dict(beta=.1), train_dataset=rows(), processing_class=tok()), refuse, r'DPOConfig\(\*\*args\) makes one of it'),
    'the config of the other': (lambda s: s.DPOTrainer(s.model(), args=trl.DPOConfig(s.out, **CPU), train_dataset=rows(), processing_class=tok()), take, 'args is the DPOConfig of trl; from dpo_nb import DPOConfig'),
    'a model without a head': (lambda s: s.make(model=s.model().model), refuse, 'a model that predicts tokens, as AutoModelForCausalLM loads it, got LlamaModel'),
    'no model': (lambda s: s.DPOTrainer(None, args=s.args(), train_dataset=rows(), processing_class=tok()), refuse, 'model must be a name, a folder, .* got NoneType'),
    'tokenizer=': (argument(tokenizer=1), refuse, 'tokenizer: renamed to processing_class'),
    'beta= and max_prompt_length=': (argument(beta=.1, max_prompt_length=9), refuse, 'beta: moved to DPOConfig.beta(.|\n)*max_prompt_length: gone'),
    'compute_loss_func=': (argument(compute_loss_func=print), refuse, 'compute_loss_func: now DPOConfig.loss_type, which takes a function'),
    'warmup_ratio=': (setting(warmup_ratio=.1), refuse, 'warmup_ratio: now warmup_steps, which below 1 is a share'),
    'save_safetensors=': (setting(save_safetensors=True), refuse, 'save_safetensors: gone'),
    'logging_dir=': (setting(logging_dir='x'), refuse, 'TENSORBOARD_LOGGING_DIR'),
    'group_by_length=': (setting(group_by_length=True), refuse, 'group_by_length: gone: padding is not computed anyway'),
    'max_seq_length=': (setting(max_seq_length=9), refuse, 'max_seq_length: renamed to DPOConfig.max_length'),
    'a dict of weights': (lambda s: s.train(loss_type=['sigmoid', 'sft'], loss_weights=dict(sigmoid=1., sft=.5)), refuse, "is a dict; give a list of 2 numbers, in the order of loss_type="),
    'a rate in words': (lambda s: s.train(learning_rate='fast'), refuse, "learning_rate='fast' must be a number"),
    'dpo_loss': (overriding('dpo_loss'), ignore, 'Custom overrides dpo_loss, which nothing would call: pass the loss as a function'),
    'get_batch_loss_metrics': (overriding('get_batch_loss_metrics'), ignore, 'overrides get_batch_loss_metrics, .* override compute_loss'),
    'concatenated_forward': (overriding('concatenated_forward'), ignore, 'overrides concatenated_forward'),
    'tokenize_row': (overriding('tokenize_row'), ignore, 'overrides tokenize_row, .* override _prepare_dataset'),
    'store_metrics': (overriding('store_metrics'), ignore, r"append numbers to self\._metrics"),
    'an old compute_loss': (loss_without_a_name, refuse, 'is called with num_items_in_batch too'),
    '.tokenizer': (attribute('tokenizer'), refuse, "no attribute 'tokenizer': renamed to processing_class"),
    '.dpo_loss': (attribute('dpo_loss'), refuse, 'pass the loss as a function'),
    '.max_length': (attribute('max_length'), refuse, 'it is a setting, args.max_length'),
    'import FDivergenceType': (imported('FDivergenceType'), refuse, "FDivergenceType is not in dpo_nb: here it is a text"),
    'import DPODataCollatorWithPadding': (imported('DPODataCollatorWithPadding'), refuse, 'here it is DataCollatorForPreference'),
    'import TrlParser': (imported('TrlParser'), take, 'TrlParser is not in dpo_nb: keep `from trl import TrlParser`'),
    'import SFTTrainer': (imported('SFTTrainer'), take, 'keep `from trl import SFTTrainer`, it works beside dpo_nb'),
}


@pytest.mark.parametrize('what', REFUSED)
def test_what_is_refused_says_what_replaced_it(what, tiny, tmp_path):
    do, theirs, says = REFUSED[what]
    with pytest.raises((TypeError, ValueError, AttributeError, ImportError), match=says): do(Script(dpo_nb, tiny, tmp_path))
    if theirs == refuse:
        with pytest.raises((TypeError, ValueError, AttributeError, ImportError)) as e: do(Script(trl, tiny, tmp_path))
        assert not __import__('re').search(says, str(e.value))
    else: do(Script(trl, tiny, tmp_path))


def test_helpers_of_ones_own_loss_may_have_any_name(tiny, tmp_path):
    class Own(dpo_nb.DPOTrainer):
        def compute_loss(self, model, inputs, **kw): return self.dpo_loss(super().compute_loss(model, inputs))
        def dpo_loss(self, x): return 2*x
    t, _ = Script(dpo_nb, tiny, tmp_path).train(Own)
    assert math.isclose(t.state.log_history[0]['loss'], 2*math.log(2), rel_tol=1e-5)


def test_a_rate_from_yaml_and_a_path_are_taken(tiny, tmp_path):
    from pathlib import Path
    s = Script(dpo_nb, tiny, tmp_path)
    a = s.args(learning_rate='5e-6', warmup_steps='0.1')
    assert (a.learning_rate, a.warmup_steps) == (5e-6, .1)
    assert s.make(model=Path(tiny)).model.config.hidden_size == 32


@pytest.mark.parametrize('flags, says', {('--max_prompt_length', '9'): 'unknown flag --max_prompt_length, it is gone: prompts are no longer cut', ('--warmup_ratio=.1',): 'unknown flag --warmup_ratio=.1, it is now warmup_steps'}.items())
def test_the_command_line_knows_what_moved(flags, says, tmp_path):
    from dpo_nb.run.cli import parse
    with pytest.raises(ValueError, match=says): parse(list(flags))
    name, _, value = flags[0].strip('-').partition('=')
    (tmp_path/'c.yaml').write_text(f'{name}: {value or flags[-1]}\n')
    with pytest.raises(ValueError, match=f'no setting, it is {renamed[name][:12]}'): parse(['--config', str(tmp_path/'c.yaml')])


def test_the_module_is_the_program():
    from conftest import run
    import sys
    assert run(sys.executable, '-m', 'dpo_nb.run.cli', '--version').stdout.startswith('dpo_nb ')
    assert 'it is now warmup_steps' in run(sys.executable, '-m', 'dpo_nb.run.cli', 'train', '--warmup_ratio', '.1', check=False).stderr


# --- the tables themselves

def test_names_that_stay_are_trls_and_names_of_ours_are_here():
    assert not [k for k in stays_in_trl if not hasattr(trl, k)]
    for where in moved_imports.values():
        if not where.startswith('dpo_nb.'): continue
        module, name = where.rsplit('.', 1)
        assert hasattr(importlib.import_module(module), name), where
    assert not [k for k in moved_imports if k in dpo_nb.__all__] and not hasattr(dpo_nb, 'no_such_name')


def test_a_name_that_moved_is_none_that_exists():
    from inspect import signature
    for lib in (dpo_nb, trl):
        legal = {f.name for f in fields(lib.DPOConfig)} | set(signature(lib.DPOTrainer.__init__).parameters)
        assert not legal & set(renamed)
    assert not [k for k in moved_methods if hasattr(dpo_nb.DPOTrainer, k)]
    assert {k for k in moved_methods if hasattr(trl.DPOTrainer, k)} == {'_compute_loss', '_precompute_ref_logps'}  # refused here, with what to override
