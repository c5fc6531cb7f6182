"Answers while training: the run is the same without them, with adapters, resumes and streams; the file is only ever appended to."
import json

import pytest, torch
from datasets import Dataset
from peft import LoraConfig
from transformers import HfArgumentParser

from dpo_nb import DPOConfig
from dpo_nb.toy import load_toy_model, load_toy_tokenizer
from dpo_nb.train.samples import SampleCallback, answer, read_prompts, read_samples, undisturbed
from test_trainer import LORA, rows, steps, trainer  # noqa: F401, a fixture

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning')
ASK = dict(sample_prompts=2, sample_steps=2, sample_max_new_tokens=8)


@pytest.mark.parametrize('kw', [dict(), dict(disable_dropout=False), dict(gradient_checkpointing=False), dict(peft_config=LoraConfig(**LORA, lora_dropout=.3), disable_dropout=False)],
                         ids=['plain', 'dropout', 'no checkpointing', 'adapter with dropout'])
def test_training_is_the_same_bit_for_bit(trainer, kw):
    model = lambda: load_toy_model(attention_dropout=.2)
    a = trainer(model(), **kw); a.train()
    b = trainer(model(), **kw, **ASK); b.train()
    assert [(h['loss'], h['grad_norm']) for h in steps(a)] == [(h['loss'], h['grad_norm']) for h in steps(b)]
    assert [r['step'] for r in b.samples.rows] == [0, 0, 2, 2, 3, 3] and a.samples is None
    assert all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters()))


def test_rows_of_a_resumed_run_are_complete_and_the_file_is_appended_to(trainer):
    make = lambda: trainer(max_steps=6, save_strategy='steps', save_steps=2, **ASK)
    whole = make(); whole.train()
    file = whole.samples.file
    before, rows_ = file.read_text(), list(whole.samples.rows)
    resumed = make(); resumed.train(resume_from_checkpoint=whole.args.output_dir+'/checkpoint-2')
    assert resumed.samples.rows == rows_ == read_samples(file) and [r['step'] for r in rows_] == [0, 0, 2, 2, 4, 4, 6, 6]
    assert file.read_text().startswith(before) and len(file.read_text().splitlines()) == 12


def test_where_prompts_come_from(trainer):
    held = rows(3, 'test')
    assert trainer(eval_dataset=held, **ASK).samples.texts == [r['prompt'][-1]['content'] for r in held.select(range(2))]
    assert trainer(eval_dataset=dict(a=held, b=rows(3)), **ASK).samples.texts == [r['prompt'][-1]['content'] for r in held.select(range(2))]
    assert trainer(**ASK).samples.texts == [r['prompt'][-1]['content'] for r in rows(2)]
    assert len(trainer(data=rows().to_iterable_dataset(), **ASK).samples.texts) == 2
    plain = Dataset.from_list([dict(prompt='The tea', chosen=' was good.', rejected=' was bad.')]*4)
    t = trainer(data=plain, sample_prompts=['The soup', [dict(role='user', content='Hi')]])
    assert t.samples.texts == ['The soup', 'Hi'] and t.samples.batch['input_ids'].shape == t.samples.batch['attention_mask'].shape
    assert t._tokenizer.decode(t.samples.batch['input_ids'][0][t.samples.batch['attention_mask'][0].bool()]) == 'The soup'


@pytest.mark.parametrize('words, want', [(['2'], 2), (['none'], None), (['Hi.', 'You there?'], ['Hi.', 'You there?']), (['[{"role": "user", "content": "Hi"}]'], [[dict(role='user', content='Hi')]])])
def test_command_line(tmp_path, words, want):
    c, = HfArgumentParser(DPOConfig).parse_args_into_dataclasses(['--output_dir', str(tmp_path), '--sample_prompts', *words, '--sample_steps', '7'])
    assert (c.sample_prompts, c.sample_steps, c.ledger) == (want, 7, True)
    json.dumps(c.to_dict())


@pytest.mark.parametrize('kw', [dict(sample_prompts=-1), dict(sample_prompts=[3]), dict(sample_prompts=[dict(role='user', content='x')]), dict(sample_prompts=2, sample_steps=0),
                                dict(sample_prompts=2, sample_max_new_tokens=0)])
def test_what_cannot_be_sampled_is_refused(tmp_path, kw):
    with pytest.raises(ValueError, match='sample_'): DPOConfig(str(tmp_path), **kw)


def test_modes_and_random_numbers_come_back_after_an_error():
    m = load_toy_model().train(); m.model.norm.eval()
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        with undisturbed(m): torch.rand(3); raise RuntimeError
    assert m.training and not m.model.norm.training and torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif('not torch.cuda.is_available()', reason='needs a GPU')
def test_on_a_gpu():
    tok, m = load_toy_tokenizer(), load_toy_model().cuda().train()
    asked = read_prompts([r['prompt'] for r in rows(2, 'test')], None, tok)[1]
    torch.cuda.manual_seed(3); want = torch.rand(4, device='cuda')
    torch.cuda.manual_seed(3); said = answer(m, tok, asked, temperature=1.)
    assert torch.equal(torch.rand(4, device='cuda'), want) and len(said) == 2 and m.training
    assert answer(m, tok, asked) == answer(load_toy_model(), tok, asked)
