"Scores of pairs: the trainer's numbers, adapters that carry their reference, files that are gone on with, and a command line that refuses in one line."
import json

import pytest, torch
from peft import LoraConfig, get_peft_model

import dpo_nb
from dpo_nb.run import cli
from dpo_nb.toy import load_toy_model, load_toy_pairs, load_toy_tokenizer, toy_path

CPU = dict(use_cpu=True, bf16=False)


@pytest.fixture(scope='module')
def pairs(): return load_toy_pairs()['test'].select(range(10))


def nudged(std=.01):
    torch.manual_seed(0)
    m = load_toy_model()
    with torch.no_grad():
        for w in m.parameters(): w += std*torch.randn(w.shape)
    return m


def test_equals_what_evaluation_logs(pairs, tmp_path):
    model, ref, tok = nudged(), load_toy_model(), load_toy_tokenizer()
    scored = dpo_nb.score(model, ref, pairs, tok, beta=.3, batch_size=3, **CPU)
    args = dpo_nb.DPOConfig(str(tmp_path), beta=.3, report_to='none', disable_tqdm=True, gradient_checkpointing=False,
                            per_device_eval_batch_size=10, **CPU)  # one batch: the log averages batches, not pairs
    logged = dpo_nb.DPOTrainer(model, ref, args, train_dataset=pairs, processing_class=tok).evaluate(pairs)
    mean = lambda k: sum(scored[k])/len(scored)
    for ours, theirs in (('margin', 'rewards/margins'), ('chosen_reward', 'rewards/chosen'), ('rejected_logps', 'logps/rejected')):
        assert mean(ours) == pytest.approx(logged[f'eval_{theirs}'], rel=1e-4, abs=1e-5)
    assert scored.column_names[:len(pairs.column_names)] == pairs.column_names


def test_an_adapter_is_measured_against_its_base(pairs, tmp_path):
    torch.manual_seed(0)
    m = get_peft_model(load_toy_model(), LoraConfig(r=4, target_modules=['q_proj', 'v_proj']))
    with torch.no_grad():
        for n, w in m.named_parameters():
            if 'lora_B' in n: w.normal_(std=.05)
    alone = dpo_nb.score(m, dataset=pairs, processing_class=load_toy_tokenizer(), **CPU)
    against = dpo_nb.score(m, load_toy_model(), pairs, load_toy_tokenizer(), **CPU)
    m.save_pretrained(tmp_path/'adapter'); load_toy_tokenizer().save_pretrained(tmp_path/'adapter')
    by_folder = dpo_nb.score(str(tmp_path/'adapter'), dataset=pairs, **CPU)
    merged = dpo_nb.score(m.merge_and_unload(), load_toy_model(), pairs, load_toy_tokenizer(), **CPU)
    for other in (against, by_folder, merged): assert torch.allclose(torch.tensor(alone['margin']), torch.tensor(other['margin']), atol=2e-4)
    assert max(map(abs, alone['margin'])) > 1e-3


def test_scores_are_not_computed_twice(pairs, tmp_path):
    file = tmp_path/'s.jsonl'
    dpo_nb.score(nudged(), load_toy_model(), pairs, load_toy_tokenizer(), output_file=file, **CPU)
    whole = file.read_text()
    marked = whole.splitlines()
    marked[0] = json.dumps(json.loads(marked[0]) | dict(margin=123.))
    file.write_text('\n'.join(marked)+'\n')
    again = dpo_nb.score(nudged(), load_toy_model(), pairs, load_toy_tokenizer(), output_file=file, **CPU)
    assert again['margin'][0] == 123. and len(file.read_text().splitlines()) == 10


def test_scored_again_replaces_columns(pairs):
    once = dpo_nb.score(nudged(), load_toy_model(), pairs, load_toy_tokenizer(), **CPU)
    twice = dpo_nb.score(nudged(), load_toy_model(), once, load_toy_tokenizer(), per_token=True, **CPU)
    assert twice.column_names.count('margin') == 1 and twice['margin'] == pytest.approx(once['margin'], abs=1e-5)
    assert all(len(r['chosen_token_rewards']) == r['chosen_tokens'] for r in twice)


@pytest.mark.parametrize('argv, says', [(['--bta', '1'], 'bta'), (['--beta', 'x'], 'beta'), ([], 'dpo_nb train'), (['--model_name_or_path', toy_path(), '--dataset_name', './none.jsonl'], 'none.jsonl'),
                                        (['--model_name_or_path', toy_path(), '--dataset_name', 'FILE', '--dataset_split', 'dev'], 'dev'), (['--model_name_or_path', toy_path(), '--dataset_name', 'FILE'], 'ref_model is missing')])
def test_refused_in_one_line(argv, says, pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pairs.to_json(tmp_path/'p.jsonl')
    assert cli.score([str(tmp_path/'p.jsonl') if a == 'FILE' else a for a in argv]) == 2
    said = [l for l in capsys.readouterr().err.splitlines() if l.startswith('dpo_nb score: error')]
    assert len(said) == 1 and says in said[0]
    assert not (tmp_path/'scores.jsonl').exists()


def trained(folder, model=None, **kw):
    "A short run, saved, and what it logs on the pairs."
    args = dpo_nb.DPOConfig(str(folder), **(dict(max_steps=3, per_device_train_batch_size=4, per_device_eval_batch_size=10, learning_rate=1e-3, beta=.3, report_to='none', save_strategy='steps', save_steps=3,
                                                 disable_tqdm=True, gradient_checkpointing=False, **CPU) | kw))
    t = dpo_nb.DPOTrainer(toy_path() if model is None else model, args=args, train_dataset=load_toy_pairs()['train'].select(range(12)), processing_class=load_toy_tokenizer())
    t.train(); t.save_model()
    return t


def test_a_run_folder_brings_everything(pairs, tmp_path, monkeypatch, capsys):
    t = trained(tmp_path/'run')
    wanted = t.evaluate(pairs)['eval_rewards/margins']
    for folder in (tmp_path/'run', tmp_path/'run'/'checkpoint-3'):
        d = dpo_nb.score(folder, dataset=pairs, **CPU)
        assert sum(d['margin'])/10 == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    monkeypatch.chdir(tmp_path)
    pairs.to_json('p.jsonl')
    assert cli.score(['--model_name_or_path', 'run', '--dataset_name', 'p.jsonl', '--output_file', 's.parquet']) == 0
    assert f'mean margin {wanted:+.3f}' in capsys.readouterr().out and (tmp_path/'s.parquet').exists() and not (tmp_path/'s.parquet.part.jsonl').exists()


@pytest.mark.parametrize('kw, says', [(dict(model=nudged), 'edited in memory'), (dict(sync_ref_model=True), 'was synchronized with the policy'), (dict(loss_type='simpo', beta=2.), 'without a reference')],
                         ids=['edited', 'synced', 'free'])
def test_a_run_whose_reference_cannot_be_had_says_why(kw, says, pairs, tmp_path):
    trained(tmp_path/'run', **{k: v() if callable(v) else v for k, v in kw.items()})
    with pytest.raises(ValueError, match=says): dpo_nb.score(tmp_path/'run', dataset=pairs, **CPU)
    assert dpo_nb.score(tmp_path/'run', load_toy_model(), pairs, **CPU)['margin'][0] != 0


# --- what a run's folder says reaches the scores

THANKS = [dict(role='user', content='Thanks.')]

@pytest.fixture(scope='module')
def turns(pairs):
    "Two answers each, with a user's turn between them."
    return pairs.map(lambda r: dict(chosen=r['chosen']+THANKS+r['chosen'], rejected=r['rejected']+THANKS+r['rejected']))


def test_the_turns_that_count_in_a_run_count_in_its_scores(turns, tmp_path):
    "`loss_on` reaches the masks."
    t = trained(tmp_path/'run', loss_on='assistant')
    wanted = t.evaluate(turns)
    found, every = (dpo_nb.score(tmp_path/'run', dataset=turns, **CPU, **kw) for kw in ({}, dict(loss_on='completion')))
    mean = lambda d, k: sum(d[k])/10
    assert mean(found, 'margin') == pytest.approx(wanted['eval_rewards/margins'], rel=1e-4, abs=1e-5)
    assert mean(found, 'chosen_logps') == pytest.approx(wanted['eval_logps/chosen'], rel=1e-4)
    assert all(a < b for a, b in zip(found['chosen_tokens'], every['chosen_tokens'])) and mean(every, 'margin') != pytest.approx(mean(found, 'margin'), abs=1e-3)


def test_length_and_mode_of_a_run_cut_what_is_scored(pairs, tmp_path):
    t = trained(tmp_path/'run', max_length=45, truncation_mode='keep_end')
    wanted = t.evaluate(pairs)['eval_rewards/margins']
    found = {k: dpo_nb.score(tmp_path/'run', dataset=pairs, **CPU, **kw) for k, kw in dict(own={}, start=dict(truncation_mode='keep_start'), whole=dict(max_length=1024)).items()}
    margins = {k: sum(d['margin'])/10 for k, d in found.items()}
    assert margins['own'] == pytest.approx(wanted, rel=1e-4, abs=1e-5) and len(set(margins.values())) == 3
    assert max(map(sum, zip(found['own']['chosen_tokens']))) <= 45


def test_beta_is_that_of_the_run_unless_another_is_given(pairs, tmp_path):
    trained(tmp_path/'run', beta=.3)
    own, given, free = (dpo_nb.score(m, r, pairs.select(range(3)), load_toy_tokenizer(), beta=b, **CPU)['margin'] for m, r, b in
                        ((tmp_path/'run', None, None), (tmp_path/'run', None, .6), (nudged(), load_toy_model(), None)))
    tenth = dpo_nb.score(nudged(), load_toy_model(), pairs.select(range(3)), load_toy_tokenizer(), beta=.1, **CPU)['margin']
    assert given == pytest.approx([2*m for m in own], rel=1e-5) and free == tenth


def test_the_precision_of_a_run_is_that_of_its_scores(pairs, tmp_path):
    trained(tmp_path/'run', bf16=True)
    own, bf16, fp32 = (dpo_nb.score(tmp_path/'run', dataset=pairs.select(range(3)), use_cpu=True, **kw)['chosen_logps'] for kw in ({}, dict(bf16=True), dict(bf16=False)))
    assert own == bf16 != fp32 and own == pytest.approx(fp32, rel=.02)


def test_how_a_model_is_loaded_reaches_policy_and_reference(pairs, tmp_path):
    trained(tmp_path/'run')
    half, whole = (dpo_nb.score(str(tmp_path/'run'), toy_path(), pairs.select(range(3)), model_init_kwargs=dict(dtype=d), **CPU) for d in ('bfloat16', 'float32'))
    for k in ('chosen_logps', 'ref_chosen_logps'): assert half[k] != whole[k] and half[k] == pytest.approx(whole[k], rel=.02)


# --- scoring takes no trainer, and leaves everything as it was

def test_models_are_given_back_as_they_came(pairs):
    "Frozen weights stay frozen, dropout stays in place, modes are put back."
    policy, ref = nudged().requires_grad_(False), load_toy_model(attention_dropout=.3).train()
    policy.eval()
    first = dpo_nb.score(policy, ref, pairs.select(range(3)), load_toy_tokenizer(), **CPU)['margin']
    assert not any(w.requires_grad for w in policy.parameters()) and all(w.requires_grad for w in ref.parameters())
    assert not policy.training and ref.training and ref.config.attention_dropout == .3 == ref.model.layers[0].self_attn.attention_dropout
    assert first == dpo_nb.score(policy.train(), ref.eval(), pairs.select(range(3)), load_toy_tokenizer(), **CPU)['margin'] and policy.training and not ref.training


def test_a_trainer_that_is_alive_goes_on(pairs, tmp_path):
    t = trained(tmp_path/'run')
    before = t.evaluate(pairs)['eval_loss']
    torch.manual_seed(5)
    state = torch.get_rng_state()
    dpo_nb.score(tmp_path/'run', dataset=pairs.select(range(3)), **CPU)
    assert torch.equal(state, torch.get_rng_state()) and t.evaluate(pairs)['eval_loss'] == before
    t.train()


def test_an_adapter_with_a_kept_one_is_measured_against_it(pairs, tmp_path):
    "As in the run that went on from it; and neither adapter is lost."
    torch.manual_seed(0)
    m = get_peft_model(load_toy_model(), LoraConfig(r=4, target_modules=['q_proj', 'v_proj']))
    with torch.no_grad():
        for n, w in m.named_parameters():
            if 'lora_B' in n: w.normal_(std=.05)
    t = trained(tmp_path/'run', m)
    wanted = t.evaluate(pairs)['eval_rewards/margins']
    policy = t.accelerator.unwrap_model(t.model)
    found = dpo_nb.score(policy, dataset=pairs, processing_class=load_toy_tokenizer(), beta=.3, **CPU)['margin']
    assert sum(found)/10 == pytest.approx(wanted, rel=1e-3, abs=1e-5) and sorted(policy.peft_config) == ['default', 'ref'] and policy.active_adapter == 'default'


@pytest.mark.parametrize('name, words', [
    (None, 'was measured against a model that had no name; pass the model'),
    ('/gone/model', 'was measured against /gone/model, which is not there any more'),
    ('nobody/nothing', 'was measured against nobody/nothing, which cannot be loaded')])
def test_a_reference_that_cannot_be_found(tmp_path, name, words):
    from dpo_nb.diagnose.scoring import find_reference, scoring_config
    facts = dict(needs_reference=True, reference_moved=False, own_reference=False, reference=name, reference_weights=None)
    with pytest.raises(ValueError, match=words) as e: find_reference(tmp_path, facts, scoring_config({}, **CPU))
    assert str(e.value).endswith('as ref_model')


def test_the_model_is_not_its_own_reference(pairs, tmp_path):
    m = nudged()
    with pytest.raises(ValueError, match='every reward would be 0'): dpo_nb.score(m, m, pairs, load_toy_tokenizer(), **CPU)
    with pytest.raises(TypeError, match='datasets.Dataset'): dpo_nb.score(m, load_toy_model(), [dict(pairs[0])], load_toy_tokenizer(), **CPU)
    with pytest.raises(ValueError, match='dataset is missing'): dpo_nb.score(m, load_toy_model())


def test_a_file_of_other_scores_is_not_gone_on_with(pairs, tmp_path):
    file = tmp_path/'s.jsonl'
    dpo_nb.score(nudged(), load_toy_model(), pairs, load_toy_tokenizer(), output_file=file, **CPU)
    with pytest.raises(ValueError, match='does not hold scores of this dataset'):   # more lines than pairs
        dpo_nb.score(nudged(), load_toy_model(), pairs.select(range(9)), load_toy_tokenizer(), output_file=file, **CPU)
    assert len(file.read_text().splitlines()) == 10
