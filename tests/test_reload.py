"What a run saves comes back: the lines of a report, run and compared, for each kind of model, and scored from the folder alone."
import json, shutil

import pytest, torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model

import dpo_nb
from dpo_nb.diagnose.reload import Recipe, check_recipe, load_adapter_folder, reload_gap, reload_lines, run_lines
from dpo_nb.toy import load_toy_model, load_toy_pairs, load_toy_tokenizer, toy_path

CPU = dict(use_cpu=True, bf16=False)


def lora(**kw): return LoraConfig(**(dict(r=4, target_modules=['q_proj', 'v_proj'], task_type='CAUSAL_LM') | kw))


def merged():
    "A model with an adapter merged in memory; its name still leads to the one on disk."
    torch.manual_seed(0)
    m = get_peft_model(load_toy_model(), lora())
    with torch.no_grad():
        for n, w in m.named_parameters():
            if 'lora_B' in n: w.normal_(std=.1)
    return m.merge_and_unload().requires_grad_(True)


KINDS = {  # model, adapter: is a base saved beside, does the adapter merge
    'full': (load_toy_model, None, False, False), 'full, merged before': (merged, None, False, False), 'adapter': (load_toy_model, lora(), False, True),
    'on a merged base': (merged, lora(), True, True), 'pissa': (load_toy_model, lora(init_lora_weights='pissa'), False, True),
    'pissa_niter': (load_toy_model, lora(init_lora_weights='pissa_niter_4'), True, True), 'dora': (load_toy_model, lora(use_dora=True), False, True),
    'tied head': (load_toy_model, lora(target_modules=['lm_head', 'q_proj']), False, False), 'head saved whole': (load_toy_model, lora(modules_to_save=['lm_head']), False, True),
    'head saved whole, merged base': (merged, lora(modules_to_save=['lm_head']), True, True)}


def trained(folder, model, peft_config=None, **kw):
    args = dpo_nb.DPOConfig(str(folder), **(dict(max_steps=3, per_device_train_batch_size=4, per_device_eval_batch_size=6, learning_rate=1e-2, report_to='none', save_strategy='no',
                                                 disable_tqdm=True, gradient_checkpointing=False, **CPU) | kw))
    t = dpo_nb.DPOTrainer(model, args=args, train_dataset=load_toy_pairs()['train'].select(range(12)), processing_class=load_toy_tokenizer(), peft_config=peft_config)
    t.train(); t.save_model()
    return t


def batch_of(t, n=3): return t.data_collator([t.train_dataset[i] for i in range(n)])


@pytest.mark.parametrize('kind', KINDS)
def test_what_a_run_saves_comes_back(kind, tmp_path):
    make, adapter, beside, merges = KINDS[kind]
    t = trained(tmp_path/'run', make(), adapter)
    m = t.accelerator.unwrap_model(t.model)
    names, mode = sorted(m.state_dict()), m.training
    recipe = check_recipe(m, tmp_path/'run', batch_of(t))
    assert recipe.code and recipe.gap < 1e-4 and bool(recipe.merge) == merges, recipe
    assert (tmp_path/'run'/'base').is_dir() == beside == ('saved beside' in recipe.note)
    assert sorted(m.state_dict()) == names and m.training == mode   # the model in memory is as it was
    torch.manual_seed(99)   # whatever is drawn anew, is drawn otherwise
    made = {}
    exec('\n'.join([recipe.code, recipe.merge]), made)
    assert reload_gap(m, made['model'], batch_of(t)) < 1e-3 and made['tokenizer'].chat_template == load_toy_tokenizer().chat_template
    assert check_recipe(m, tmp_path/'run', batch_of(t)).code == recipe.code


@pytest.mark.parametrize('kind', ['adapter', 'on a merged base', 'pissa_niter'])
def test_a_folder_with_its_base_is_scored_as_in_training(kind, tmp_path):
    make, adapter, *_ = KINDS[kind]
    t = trained(tmp_path/'run', make(), adapter, beta=.3)
    pairs = load_toy_pairs()['test'].select(range(6))
    wanted = t.evaluate(pairs)['eval_rewards/margins']
    check_recipe(t.accelerator.unwrap_model(t.model), tmp_path/'run', batch_of(t))
    found = dpo_nb.score(tmp_path/'run', dataset=pairs, **CPU)['margin']
    assert abs(wanted) > 1e-3 and sum(found)/6 == pytest.approx(wanted, abs=1e-4)


def test_without_the_check_a_merged_base_is_lost(tmp_path):
    "What the check is there for: nothing fails, and another model answers."
    t = trained(tmp_path/'run', merged(), lora())
    m = t.accelerator.unwrap_model(t.model)
    assert reload_gap(m, AutoPeftModelForCausalLM.from_pretrained(tmp_path/'run'), batch_of(t)) > .05
    check_recipe(m, tmp_path/'run', batch_of(t))
    assert reload_gap(m, AutoPeftModelForCausalLM.from_pretrained(tmp_path/'run'), batch_of(t)) < 1e-4   # its config names the base beside it
    shutil.move(tmp_path/'run', tmp_path/'moved')
    assert reload_gap(m, load_adapter_folder(tmp_path/'moved'), batch_of(t)) < 1e-4


def test_a_base_in_16_bits_is_named(tmp_path):
    "Trained in float32 from weights that are stored in bf16, as those of a hub are."
    load_toy_model().bfloat16().save_pretrained(tmp_path/'stored'); load_toy_tokenizer().save_pretrained(tmp_path/'stored')
    t = trained(tmp_path/'run', str(tmp_path/'stored'), lora())
    recipe = check_recipe(t.accelerator.unwrap_model(t.model), tmp_path/'run', batch_of(t))
    assert "dtype='float32'" in recipe.code and recipe.gap < 1e-4 and not recipe.note


def test_lines_that_fail_are_not_printed(tmp_path):
    t = trained(tmp_path/'run', load_toy_model())
    m, batch = t.accelerator.unwrap_model(t.model), batch_of(t)
    with torch.no_grad():
        for w in m.parameters(): w += .02*torch.randn_like(w)
    recipe = check_recipe(m, tmp_path/'run', batch)
    assert recipe.code == '' and recipe.gap > .01 and 'another model' in recipe.note and not (tmp_path/'run'/'base').exists()
    (tmp_path/'run'/'tokenizer_config.json').unlink(); (tmp_path/'run'/'config.json').write_text('{')
    assert check_recipe(m, tmp_path/'run', batch).note.startswith(f'the lines that load {tmp_path}/run fail')
