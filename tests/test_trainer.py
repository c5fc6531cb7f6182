"What the trainer must survive: resuming, adapters of every kind, streams, evaluation in the middle, other architectures, silence."
import json, logging, math, warnings
from functools import cache

import numpy as np
import pytest, torch
from datasets import IterableDataset
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback

from dpo_nb import DPOConfig, DPOTrainer
from dpo_nb.data.collator import DataCollatorForPreference
from dpo_nb.data.truncate import prepare_dataset
from dpo_nb.toy import load_toy_model, load_toy_pairs, load_toy_tokenizer, toy_path

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning')
LN2 = math.log(2)
LORA = dict(r=4, lora_alpha=8, target_modules=['q_proj', 'v_proj'])
pairs = cache(load_toy_pairs)
rows = lambda n=12, split='train', start=0: pairs()[split].select(range(start, start+n))


@pytest.fixture
def trainer(tmp_path):
    "A function that makes a trainer of the toy model on a dozen pairs; arguments of the config and of the trainer may be mixed."
    def make(model=None, data=None, out='out', **kw):
        own = {k: kw.pop(k) for k in ('ref_model', 'eval_dataset', 'peft_config', 'compute_metrics', 'data_collator', 'callbacks', 'optimizers', 'quantization_config') if k in kw}
        args = DPOConfig(str(tmp_path/out), **(dict(max_steps=3, per_device_train_batch_size=2, per_device_eval_batch_size=4, learning_rate=1e-3, logging_steps=1, bf16=False,
                                                    save_strategy='no', report_to='none', disable_tqdm=True, seed=1) | kw))
        tok = own.pop('processing_class', load_toy_tokenizer())
        return DPOTrainer(load_toy_model() if model is None else model, args=args, train_dataset=rows() if data is None else data, processing_class=tok, **own)
    return make


def steps(t): return [h for h in t.state.log_history if 'loss' in h]
def run(t, **kw): t.train(**kw); return steps(t)
def at_start(t): return run(t)[0]['loss']
def logits(m):
    with torch.no_grad(): return m.eval()(input_ids=torch.arange(3, 19).view(2, 8)).logits


class Heard(logging.Handler):
    "Every warning that is logged, by us or by transformers."
    def __init__(self): super().__init__(logging.WARNING); self.said = []
    def emit(self, record): self.said.append(record.getMessage())


@pytest.fixture
def heard():
    h, loggers = Heard(), [logging.getLogger(n) for n in ('dpo_nb', 'transformers', 'accelerate', 'peft', 'datasets')]
    for l in loggers: l.addHandler(h)
    yield h.said
    for l in loggers: l.removeHandler(h)


# --- silence

@pytest.mark.parametrize('kw', [dict(), dict(gradient_checkpointing=False), dict(eval_strategy='steps', eval_steps=1, save_strategy='steps', save_steps=2, gradient_accumulation_steps=2)])
def test_a_plain_run_warns_of_nothing(trainer, heard, kw):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        t = trainer(toy_path(), eval_dataset=rows(4, 'test'), **kw)
        t.train()
    assert heard == []


# --- resuming and saving

@pytest.mark.parametrize('kind', ['all weights', 'new adapter', 'continued adapter'])
def test_a_resumed_run_is_the_uninterrupted_run(trainer, kind):
    def make():
        kw = dict(max_steps=6, save_strategy='steps', save_steps=2)
        if kind == 'continued adapter': return trainer(sft_adapter(), **kw)
        return trainer(peft_config=LoraConfig(**LORA) if kind == 'new adapter' else None, **kw)
    whole = make(); whole.train()
    resumed = make(); resumed.train(resume_from_checkpoint=str(whole.args.output_dir)+'/checkpoint-2')
    keys = ('step', 'loss', 'grad_norm', 'learning_rate', 'num_tokens', 'rewards/chosen', 'rewards/margins', 'entropy')
    pick = lambda t: [{k: h[k] for k in keys} for h in steps(t)]
    assert pick(resumed) == pick(whole) and steps(whole)[0]['loss'] == pytest.approx(LN2, abs=1e-6)
    assert torch.equal(logits(whole.model), logits(resumed.model))


@pytest.mark.parametrize('kind', ['continued adapter', 'synced adapter'])
def test_a_resumed_adapter_where_transformers_forgets_it(trainer, kind, monkeypatch):
    "Before 5.23 `Trainer` reads the adapters in subfolders of a checkpoint, which is the reference's, and not the policy's beside them."
    monkeypatch.setattr(Trainer, '_load_from_checkpoint', lambda self, folder, model=None: self.model.load_adapter(f'{folder}/ref', 'ref'))
    def make():
        kw = dict(max_steps=6, save_strategy='steps', save_steps=2)
        if kind == 'continued adapter': return trainer(sft_adapter(), **kw)
        return trainer(peft_config=LoraConfig(**LORA), sync_ref_model=True, ref_model_sync_steps=2, **kw)
    whole = make(); whole.train()
    resumed = make(); resumed.train(resume_from_checkpoint=str(whole.args.output_dir)+'/checkpoint-4')
    assert [h['loss'] for h in steps(resumed)][-2:] == [h['loss'] for h in steps(whole)][-2:] and torch.equal(logits(whole.model), logits(resumed.model))
    assert [n for n, w in resumed.model.named_parameters() if w.requires_grad] == [n for n, w in whole.model.named_parameters() if w.requires_grad]


def sft_adapter():
    "An adapter that is no longer zero."
    torch.manual_seed(0)
    m = get_peft_model(load_toy_model(), LoraConfig(**LORA))
    for w in m.parameters():
        if w.requires_grad: w.data += .05*torch.randn_like(w)
    return m


def test_the_token_count_of_a_checkpoint_between_two_logs(trainer):
    kw = dict(max_steps=6, save_strategy='steps', save_steps=2, logging_steps=3)
    whole = trainer(**kw); whole.train()
    resumed = trainer(**kw); resumed.train(resume_from_checkpoint=str(whole.args.output_dir)+'/checkpoint-4')
    assert steps(resumed)[-1]['num_tokens'] == steps(whole)[-1]['num_tokens'] > steps(whole)[0]['num_tokens']


def test_the_folder_of_a_full_model_loads_with_the_same_bits(trainer, tmp_path):
    t = trainer(load_toy_model(attention_dropout=.1)); t.train(); t.save_model()
    m = AutoModelForCausalLM.from_pretrained(t.args.output_dir)
    assert torch.equal(logits(m), logits(t.model)) and m.config.attention_dropout == .1
    assert {'model.safetensors', 'tokenizer.json', 'chat_template.jinja'} <= {p.name for p in (tmp_path/'out').iterdir()}


def test_an_adapter_is_saved_alone(trainer, tmp_path):
    t = trainer(peft_config=LoraConfig(**LORA)); t.train(); t.save_model()
    files = {p.name for p in (tmp_path/'out').iterdir()}
    assert 'adapter_model.safetensors' in files and 'model.safetensors' not in files
    m = PeftModel.from_pretrained(load_toy_model(), t.args.output_dir)
    assert torch.equal(logits(m), logits(t.model))


def test_a_continued_adapter_is_saved_as_itself_with_its_reference_beside_it(trainer, tmp_path):
    start = sft_adapter()
    before = logits(start).clone()
    t = trainer(start); assert at_start(t) == pytest.approx(LN2, abs=1e-6); t.save_model()
    assert (tmp_path/'out'/'adapter_model.safetensors').exists() and not (tmp_path/'out'/'model.safetensors').exists()
    assert torch.equal(logits(PeftModel.from_pretrained(load_toy_model(), t.args.output_dir)), logits(t.model))
    assert torch.equal(logits(PeftModel.from_pretrained(load_toy_model(), t.args.output_dir+'/ref')), before)


def test_a_loss_that_cannot_be_pickled_is_saved_by_name(trainer):
    t = trainer(loss_type=['sigmoid', lambda p, *, beta=.1: beta*p.delta**2], loss_weights=[1, .1], save_strategy='steps', save_steps=1)
    t.train(); t.save_model()
    assert torch.load(t.args.output_dir+'/training_args.bin', weights_only=False).loss_type == ['sigmoid', '<lambda>'] and callable(t.args.loss_type[1])


def test_a_checkpoint_given_as_the_model_is_reported(trainer, heard):
    t = trainer(save_strategy='steps', save_steps=2); t.train()
    trainer(t.args.output_dir+'/checkpoint-2', out='second')
    assert len([s for s in heard if 'half-trained weights become the reference' in s]) == 1
    t.save_model(t.args.output_dir+'/final'); heard.clear()
    trainer(t.args.output_dir+'/final', out='third')
    assert heard == []


# --- what the reference is

@pytest.mark.parametrize('kw', [dict(), dict(bf16=True), dict(peft_config=LoraConfig(**LORA, init_lora_weights='pissa')), dict(peft_config=LoraConfig(**LORA, lora_dropout=.5)),
                                dict(peft_config=LoraConfig(**LORA), bf16=True), dict(gradient_checkpointing=False, peft_config=LoraConfig(**LORA))])
def test_step_0_is_ln_2(trainer, kw):
    first = run(trainer(max_steps=1, **kw))[0]
    assert first['loss'] == pytest.approx(LN2, abs=1e-6) and first['rewards/margins'] == first['rewards/chosen'] == 0 and first['grad_norm'] > 0


def test_dropout_of_attention_functions(trainer, heard):
    assert at_start(trainer(load_toy_model(attention_dropout=.5))) == pytest.approx(LN2, abs=1e-6)
    assert len(heard) == 1 and 'attention_dropout=0.5' in heard[0]
    assert abs(at_start(trainer(load_toy_model(attention_dropout=.5), disable_dropout=False)) - LN2) > 1e-4


def test_a_reference_that_was_passed_is_used(trainer):
    other = load_toy_model()
    for w in other.parameters(): w.data += .02*torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
    first = run(trainer(ref_model=other, max_steps=1))[0]
    assert first['rewards/chosen'] != 0 and run(trainer(ref_model=toy_path(), max_steps=1))[0]['rewards/chosen'] == 0
    assert run(trainer(ref_model=other, peft_config=LoraConfig(**LORA), max_steps=1))[0]['rewards/chosen'] == pytest.approx(first['rewards/chosen'], rel=1e-5)


def test_a_merged_model_is_its_own_reference(trainer):
    m = sft_adapter().merge_and_unload()
    with pytest.raises(ValueError, match='merge_and_unload'): trainer(m)
    assert at_start(trainer(m.requires_grad_(True))) == pytest.approx(LN2, abs=1e-6)


def test_gradient_checkpointing_changes_nothing(trainer):
    for config in (None, LORA):
        a, b = (run(trainer(gradient_checkpointing=g, peft_config=config and LoraConfig(**config))) for g in (True, False))
        for x, y in zip(a, b): assert x['loss'] == pytest.approx(y['loss'], rel=1e-5) and x['grad_norm'] == pytest.approx(y['grad_norm'], rel=1e-4)


# --- models and adapters

@pytest.mark.parametrize('kind', ['gpt2', 'qwen2', 'opt', 'gpt_neox', 'bloom', 'mamba'])
def test_other_architectures(trainer, kind):
    c = AutoConfig.for_model(kind, vocab_size=892)
    for k in ('hidden_size', 'n_embd', 'd_model', 'word_embed_proj_dim'):
        if hasattr(c, k): setattr(c, k, 16)
    for k in ('num_hidden_layers', 'n_layer', 'num_attention_heads', 'n_head', 'num_key_value_heads'):
        if hasattr(c, k): setattr(c, k, 2)
    for k in ('intermediate_size', 'ffn_dim'):
        if hasattr(c, k): setattr(c, k, 32)
    m = AutoModelForCausalLM.from_config(c)
    before = [w.clone() for w in m.parameters()]
    h = run(trainer(m, max_steps=2))
    assert h[0]['loss'] == pytest.approx(LN2, abs=1e-6) and h[1]['rewards/margins'] != 0
    assert any(not torch.equal(a, b) for a, b in zip(before, m.parameters()))


def test_a_folder_a_tokenizer_from_it_and_no_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    t = DPOTrainer(toy_path(), train_dataset=rows())
    assert t.args.output_dir == 'model-DPO' and t.args.beta == .1 and t.model.dtype == torch.float32
    assert t.processing_class.get_vocab() == load_toy_tokenizer().get_vocab()


@pytest.mark.parametrize('config', [LoraConfig(r=4, target_modules=['lm_head']), LoraConfig(r=4, target_modules=['q_proj'], modules_to_save=['lm_head']),
                                    LoraConfig(r=4, target_modules=['embed_tokens']), LoraConfig(r=4, target_modules=['q_proj'], use_dora=True),
                                    IA3Config(target_modules=['k_proj', 'down_proj'], feedforward_modules=['down_proj'])], ids=['lm_head', 'whole lm_head', 'embeddings', 'dora', 'ia3'])
@pytest.mark.filterwarnings('ignore')
def test_adapters_anywhere_start_at_ln_2_and_learn(trainer, config):
    m = load_toy_model()
    base = logits(m).clone()
    t = trainer(m, peft_config=config); h = run(t)
    assert h[0]['loss'] == pytest.approx(LN2, abs=1e-6) and h[-1]['rewards/margins'] != 0
    with t.model.disable_adapter(): assert torch.equal(logits(t.model), base)
    assert not torch.equal(logits(t.model), base)


@pytest.mark.parametrize('config', [PromptTuningConfig, PrefixTuningConfig])
@pytest.mark.filterwarnings('ignore')
def test_virtual_tokens_are_measured_against_the_model_without_them(trainer, config):
    t = trainer(peft_config=config(task_type='CAUSAL_LM', num_virtual_tokens=3), gradient_checkpointing=False, learning_rate=1e-2)
    before = [w.clone() for w in t.model.parameters() if w.requires_grad]
    h = run(t)
    assert all(math.isfinite(x['loss']) for x in h) and h[0]['rewards/chosen'] != 0
    assert any(not torch.equal(a, b) for a, b in zip(before, (w for w in t.model.parameters() if w.requires_grad)))


# --- data

def test_a_stream_gives_what_the_list_gives_and_leaves_the_config_alone(trainer, tmp_path):
    listed = run(trainer(train_sampling_strategy='sequential'))
    args = dict(max_steps=3)
    t = trainer(data=rows().to_iterable_dataset(), **args)
    assert [h['loss'] for h in run(t)] == pytest.approx([h['loss'] for h in listed], rel=1e-6)
    assert t.args.accelerator_config.dispatch_batches is False
    mine = DPOConfig(str(tmp_path/'x'), max_steps=1, report_to='none')
    DPOTrainer(load_toy_model(), args=mine, train_dataset=rows().to_iterable_dataset(), processing_class=load_toy_tokenizer())
    assert mine.accelerator_config.dispatch_batches is None


def test_a_stream_that_cannot_be_read_twice(trainer):
    def once():
        for r in rows(): yield {k: r[k] for k in ('prompt', 'chosen', 'rejected')}
    assert len(run(trainer(data=IterableDataset.from_generator(once)))) == 3


def test_tokenized_data_is_taken_as_it_is(trainer):
    ready = prepare_dataset(rows(), load_toy_tokenizer(), max_length=1024)
    assert [h['loss'] for h in run(trainer(data=ready))] == [h['loss'] for h in run(trainer())]


def test_a_collator_of_ones_own_may_add_what_it_likes(trainer):
    seen = []
    class Mine(DataCollatorForPreference):
        def torch_call(self, examples):
            seen.append(set(examples[0]))
            return (b := super().torch_call(examples)) | dict(position_ids=torch.arange(b['input_ids'].shape[1]).expand_as(b['input_ids']))
    with_positions = run(trainer(data_collator=Mine(pad_token_id=0)))
    assert [h['loss'] for h in with_positions] == pytest.approx([h['loss'] for h in run(trainer())], rel=1e-6)
    assert all(s == {'prompt_ids', 'chosen_ids', 'rejected_ids'} for s in seen)


# --- evaluation

def test_several_evaluation_sets_in_the_middle_of_training(trainer):
    t = trainer(eval_dataset=dict(a=rows(4, 'test'), b=rows(6, 'test', 4)), eval_strategy='steps', eval_steps=1, gradient_accumulation_steps=2, max_steps=2)
    t.train()
    evals = [h for h in t.state.log_history if any(k.startswith('eval_') for k in h)]
    assert len(evals) == 4 and all(f'eval_{n}_rewards/margins' in h for n, h in zip('abab', evals))
    assert not any(k.startswith('eval_b') for k in evals[0]) and not any('/' in k and not k.startswith('eval_') for h in evals for k in h)
    assert [h['num_tokens'] for h in steps(t)] == [h['num_tokens'] for h in run(trainer(gradient_accumulation_steps=2, max_steps=2))]  # evaluation does not count


def test_the_best_checkpoint_can_be_chosen_by_any_metric(trainer):
    t = trainer(eval_dataset=rows(8, 'test'), eval_strategy='steps', eval_steps=1, save_strategy='steps', save_steps=1, load_best_model_at_end=True,
                metric_for_best_model='eval_rewards/accuracies', greater_is_better=True)
    t.train()
    assert t.state.best_metric == max(h['eval_rewards/accuracies'] for h in t.state.log_history if 'eval_loss' in h)


def test_prediction_does_not_leak_into_the_next_evaluation(trainer):
    t = trainer(eval_dataset=rows(8, 'test')); t.train()
    clean = t.evaluate()
    t.predict(rows(6, 'train'))
    t.evaluate(rows(6, 'train'), metric_key_prefix='other')
    again = t.evaluate()
    assert {k: v for k, v in again.items() if '/' in k and 'second' not in k} == {k: v for k, v in clean.items() if '/' in k and 'second' not in k}


def test_predictions_are_complete_and_in_order(trainer):
    data, seen = rows(9, 'test'), []
    t = trainer(eval_dataset=data, compute_metrics=lambda p: seen.append(p) or dict(mine=1.))
    assert t.evaluate()['eval_mine'] == 1. and seen[0].predictions.shape[0] == 9
    out, tok = t.predict(data), load_toy_tokenizer()
    assert out.metrics['test_rewards/margins'] == 0 and np.array_equal(out.predictions, seen[0].predictions)
    for i in range(9):
        for side, name in enumerate(('chosen', 'rejected')):
            ids = out.label_ids[i, :, side]
            assert tok.decode(ids[ids != -100], skip_special_tokens=True).strip() == data[i][name][-1]['content']
            inside = out.label_ids[i, 1:, side] != -100
            assert (out.predictions[i, inside, side] < 0).all()


def test_the_eval_loss_is_a_mean_over_pairs_and_the_metrics_are_means_over_batches(trainer):
    t = trainer(eval_dataset=rows(5, 'test')); t.train()
    four, one, both = (t.evaluate(rows(5, 'test').select(s)) for s in (range(4), [4], range(5)))
    assert both['eval_loss'] == pytest.approx((4*four['eval_loss'] + one['eval_loss'])/5, rel=1e-5)
    assert both['eval_rewards/margins'] == pytest.approx((four['eval_rewards/margins'] + one['eval_rewards/margins'])/2, rel=1e-4)


# --- refusals and the rest

def test_two_gpus_in_one_process_are_refused(trainer, monkeypatch):
    monkeypatch.setattr(DPOConfig, 'n_gpu', property(lambda self: 2))
    with pytest.raises(ValueError, match='torchrun'): trainer()


@pytest.mark.parametrize('make, says', [
    (lambda f: f(data=[dict(prompt='a', chosen='b', rejected='c')]), 'got list'), (lambda f: f(data=pairs()), "dataset['train']"), (lambda f: f(data=rows(0)), 'no rows'),
    (lambda f: f(eval_dataset=[1]), 'eval dataset must be'), (lambda f: f(eval_dataset=dict(a=rows(0))), 'the a dataset has no rows'),
    (lambda f: f(peft_config=dict(r=4)), 'got dict'), (lambda f: f(get_peft_model(load_toy_model(), LoraConfig(**LORA)), peft_config=LoraConfig(**LORA)), 'already has an adapter'),
    (lambda f: f(quantization_config='4bit'), 'already loaded'), (lambda f: f(load_toy_model().requires_grad_(False)), 'nothing would be trained'),
    (lambda f: f(pad_token='<none such>'), 'not in the tokenizer'), (lambda f: f(max_length=4), 'max_length=4')])
def test_refused_when_the_trainer_is_made(trainer, make, says):
    with pytest.raises((TypeError, ValueError)) as e: make(trainer)
    assert says in str(e.value)


def test_the_second_trainer_on_one_adapter_model_is_told(trainer):
    m = sft_adapter(); trainer(m)
    with pytest.raises(ValueError, match="adapter named 'ref'"): trainer(m)
    base = load_toy_model(); trainer(base, peft_config=LoraConfig(**LORA))
    with pytest.raises(ValueError, match='afresh'): trainer(base, peft_config=LoraConfig(**LORA))


def test_callbacks_optimizers_and_ignored_kwargs(trainer, heard):
    class Count(TrainerCallback):
        steps = 0
        def on_step_end(self, *args, **kw): self.steps += 1
    count, m = Count(), load_toy_model()
    opt = torch.optim.SGD(m.parameters(), lr=0.)
    before = logits(m).clone()
    t = trainer(m, callbacks=[count], optimizers=(opt, None), model_init_kwargs=dict(dtype='bfloat16'))
    t.train()
    assert count.steps == 3 and torch.equal(logits(m), before) and [s for s in heard if 'model_init_kwargs is ignored' in s]


def test_the_model_card_tags(trainer): assert {'dpo', 'dpo_nb'} <= set(trainer().model.model_tags)


def test_the_trainer_can_be_read_in_one_sitting():
    import ast, inspect
    from dpo_nb.train import trainer as module
    long = {n.name: n.end_lineno-n.lineno+1 for n in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(n, ast.FunctionDef) and n.end_lineno-n.lineno >= 40}
    assert not long
