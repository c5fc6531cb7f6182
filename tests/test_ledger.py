"The ledger of a run: every sighting once, the trainer's own margins, through resumes, dropped rows, accumulation and two processes; the embedded flips."
import json, math

import pytest, torch
from datasets import Dataset

from dpo_nb.data.collator import DataCollatorForPreference, row_column
from dpo_nb.toy import load_toy_model, load_toy_pairs
from dpo_nb.train.ledger import Ledger, judge, suspicious
from test_trainer import trainer, rows, steps  # noqa: F401, a fixture

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning')


def book(t): return sorted(zip(t.ledger.steps, t.ledger.rows, t.ledger.margins))


@pytest.mark.parametrize('kw', [dict(), dict(gradient_accumulation_steps=2, per_device_train_batch_size=1), dict(loss_type='simpo', beta=2.), dict(precompute_ref_log_probs=True)],
                         ids=['plain', 'accumulated', 'no reference', 'precomputed'])
def test_its_means_are_the_logged_margins(trainer, kw):
    t = trainer(**kw); t.train()
    for h in steps(t):
        seen = [m for s, _, m in book(t) if s == h['step']-1]
        assert len(seen) == 2 and sum(seen)/2 == pytest.approx(h['rewards/margins'], rel=1e-4, abs=1e-6)


def test_training_is_the_same_bit_for_bit_without_it(trainer):
    a, b = trainer(), trainer(ledger=False)
    a.train(); b.train()
    assert [h['loss'] for h in steps(a)] == [h['loss'] for h in steps(b)] and b.ledger is None
    assert row_column not in b.train_dataset.column_names


def test_a_resumed_run_has_the_ledger_of_the_uninterrupted_one(trainer):
    make = lambda: trainer(max_steps=6, save_strategy='steps', save_steps=2)
    whole = make(); whole.train()
    resumed = make(); resumed.train(resume_from_checkpoint=whole.args.output_dir+'/checkpoint-2')
    assert len(book(whole)) == 12 and book(resumed) == book(whole)
    assert vars(Ledger.load(whole.args.output_dir+'/ledger.json')) == vars(whole.ledger)
    whole.train()
    assert len(book(whole)) == 12  # a second run begins a new book


def test_numbers_are_those_of_the_rows_as_given(trainer):
    data = rows(12).shuffle(seed=3)
    long = [dict(prompt=r['prompt'], chosen=r['chosen'] if i % 3 else [dict(role='assistant', content='very '*200)], rejected=r['rejected']) for i, r in enumerate(data)]
    t = trainer(data=Dataset.from_list(long), max_length=100, overlong='drop', num_train_epochs=1, max_steps=-1); t.train()
    assert sorted(t.ledger.rows) == [i for i in range(12) if i % 3]
    found = suspicious(t.ledger, Dataset.from_list(long), ('too early', 'disputed'))
    assert all(found[i]['prompt'] == long[found[i]['row']]['prompt'] for i in range(len(found))) and len(found) == 8


def test_it_is_empty_where_rows_have_no_number(trainer):
    class Other:  # a collator of one's own gets the columns that it knows, and no other
        def __init__(self): self.inner, self.seen = DataCollatorForPreference(0), set()
        def __call__(self, examples): self.seen |= set(examples[0]); return self.inner(examples)
    other = Other()
    for t in (trainer(data_collator=other), trainer(data=rows().to_iterable_dataset())):
        t.train()
        assert len(t.ledger) == 0 and steps(t)
    assert row_column not in other.seen


def test_looking_at_the_run_is_no_sighting(trainer):
    t = trainer(eval_dataset=rows(4, 'test'), eval_strategy='steps', eval_steps=1, max_steps=2); t.train()
    before = book(t)
    t.evaluate(rows(4)); t.doctor()
    assert book(t) == before and len(before) == 4  # nor was the look before the first step


def test_margins_that_are_no_numbers_are_left_out(trainer):
    t = trainer()
    t.ledger_callback.note(torch.tensor([3, 5]), 0, torch.tensor([math.nan, .5]))
    assert (t.ledger.rows, t.ledger.margins) == ([5], [.5])


def test_a_long_book_is_quick():
    import time
    l = Ledger(); start = time.perf_counter()
    for s in range(20_000): l.add([s % 7, 8], s, [.1, .2])
    assert len(l) == 40_000 and time.perf_counter()-start < 5  # it was quadratic once


def test_jsonl_of_the_suspects(tmp_path):
    l = Ledger()
    for e in (1., 2., 3.): l.add([0, 1, 2, 3], e, [e, -e, e, e])
    d = Dataset.from_dict(dict(chosen=['a', '<script>', 'ü', 'b'], rejected=['d', 'e', 'f', 'g']))
    suspicious(l, d).to_json(tmp_path/'s.jsonl')
    line, = [json.loads(x) for x in (tmp_path/'s.jsonl').read_text().splitlines()]
    assert (line['row'], line['chosen'], line['verdict']) == (1, '<script>', 'probably mislabelled') and line['margin'] == -2.5
