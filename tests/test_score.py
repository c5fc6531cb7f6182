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
