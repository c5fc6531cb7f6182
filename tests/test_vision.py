"""Pictures: the collator makes TRL 1.16.0's batches, for eight families of processors; training logs the same numbers.

Processors and models are made here (`tiny_vlms`); TRL runs live on copies of the same rows."""
import copy, json
from functools import cache

import pytest, torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from transformers import ProcessorMixin

import dpo_nb
from dpo_nb.data.vision import (DataCollatorForVisionPreference, can_repeat, check_features, check_rows, count_features, draw_shape, draw_shapes,
                                image_places, pair_texts, text_tokenizer, to_blocks)
from test_trl_trainer import same
from tiny_vlms import FAMILIES, tiny

pytestmark = [pytest.mark.filterwarnings('ignore')]
processor = cache(lambda family: tiny(family)[0])
PICS = [draw_shape('red', 'square', 40), draw_shape('blue', 'circle', 56).resize((30, 56)), draw_shape('green', 'triangle', 30).resize((56, 28))]


def user(*parts): return [dict(role='user', content=[dict(type='image') if p is None else dict(type='text', text=p) for p in parts])]
def says(text): return [dict(role='assistant', content=text)]


ONE = dict(images=PICS[:1], prompt=[dict(role='user', content='What is this?')], chosen=says('A red square.'), rejected=says('A red circle, I believe.'))
TWO = dict(images=PICS[1:], prompt=user('Is', None, 'like', None, '?'), chosen=says('No.'), rejected=says('Yes, both are green.'))
NONE = dict(images=[], prompt=[dict(role='system', content='Be brief.'), dict(role='user', content='Good day!')], chosen=says('Good day.'), rejected=says('No.'))
TURNS = dict(images=PICS[:2], prompt=[dict(role='user', content='See these.'), *says('I see them.'), dict(role='user', content='Which is blue?')],
             chosen=says('The second.'), rejected=says('The first.'))
GOES_ON = dict(images=PICS[:1], prompt=[dict(role='user', content='What is this?'), *says('It is a')], chosen=says(' square.'), rejected=says(' blue circle.'))
BATCHES = dict(one=[ONE], several=[ONE, TWO, TURNS], mixed=[NONE, TWO, ONE], text=[NONE, NONE])


def theirs(proc, rows, **kw):
    "The batch of TRL's collator, which changes its rows; on pictures it is given every prompt's twice."
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
    return DataCollatorForVisionPreference(proc, **kw)([copy.copy(r) for r in rows])


def equal(ours, trl):
    assert list(ours) == list(trl)
    for k in ours: assert ours[k].dtype == trl[k].dtype and ours[k].equal(trl[k]), k


@pytest.mark.parametrize('rows', BATCHES)
@pytest.mark.parametrize('family', FAMILIES)
def test_collator_equals_trl(family, rows):
    proc, rows = processor(family), BATCHES[rows]
    ours = DataCollatorForVisionPreference(proc)
    equal(ours(rows), theirs(proc, rows))
    if any(r['images'] for r in rows): assert ours.repeats is True
    ours.repeats = False  # every prompt read twice
    equal(ours(rows), theirs(proc, rows))


@pytest.mark.parametrize('family', FAMILIES)
def test_length_limit_equals_trl(family):
    proc = processor(family)
    n = DataCollatorForVisionPreference(proc)([ONE, NONE])['input_ids'].shape[1]
    equal(DataCollatorForVisionPreference(proc, max_length=n-4)([ONE, NONE]), theirs(proc, [ONE, NONE], max_length=n-4))
    with pytest.raises(ValueError, match='example 1 of the batch has image tokens beyond max_length=5'):
        DataCollatorForVisionPreference(proc, max_length=5)([NONE, ONE])


@pytest.mark.parametrize('family', ['llava', 'gemma3', 'idefics3', 'qwen2_vl'])
def test_column_image_and_plain_text_equal_trl(family):
    proc = processor(family)
    single = [{k: v for k, v in ONE.items() if k != 'images'} | dict(image=p) for p in PICS]
    equal(DataCollatorForVisionPreference(proc)(single), theirs(proc, single))
    place = pair_texts(ONE, proc)['prompt'].split('user\n')[1].split('What')[0]  # as the family's template writes it
    rows = [dict(images=PICS[:1], prompt=place+'Colour?', chosen=' red', rejected=' blue or green'), dict(images=[], prompt='Good?', chosen=' Yes', rejected=' No')]
    equal(DataCollatorForVisionPreference(proc)(rows), theirs(proc, rows))


def test_prompt_that_goes_on_equals_trl():
    for family in ('llava', 'qwen2_vl'):
        equal(DataCollatorForVisionPreference(processor(family))([GOES_ON]), theirs(processor(family), [GOES_ON]))


def test_rows_are_not_changed():
    rows = [copy.copy(r) | dict(prompt=copy.deepcopy(r['prompt'])) for r in (ONE, TWO, NONE)]
    before = [repr(r) for r in rows]
    DataCollatorForVisionPreference(processor('llava'))(rows)
    assert [repr(r) for r in rows] == before


def test_filling_to_a_multiple_is_only_filling():
    proc = processor('qwen2_vl')
    plain, wide = (DataCollatorForVisionPreference(proc, pad_to_multiple_of=m)([ONE, TWO]) for m in (None, 64))
    n = plain['input_ids'].shape[1]
    assert wide['input_ids'].shape[1] == 64
    for k in plain:
        if plain[k].shape == plain['input_ids'].shape:
            assert wide[k][:, :n].equal(plain[k]) and (wide[k][:, n:] == (proc.tokenizer.pad_token_id if k == 'input_ids' else 0)).all()


def test_a_random_processor_is_asked_twice():
    "Where reading twice is not reading once repeated, every prompt is read for each answer."
    proc = copy.copy(processor('llava'))
    eye, calls = proc.image_processor, []

    class Noisy(type(eye)):
        def __call__(self, images, **kw):
            calls.append(len(images))
            out = super().__call__(images, **kw)
            return out | dict(pixel_values=out['pixel_values'] + torch.rand(()))
    proc.image_processor = copy.copy(eye)
    proc.image_processor.__class__ = Noisy
    collate = DataCollatorForVisionPreference(proc)
    collate([ONE, ONE])
    assert collate.repeats is False


def test_tools_reach_the_template():
    proc = copy.copy(processor('llava'))
    proc.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + proc.chat_template
    row = ONE | dict(tools=json.dumps([dict(type='function', function=dict(name='zoom'))]))
    assert 'zoom' in pair_texts(row, proc)['prompt'] and 'zoom' not in pair_texts(row, proc)['chosen']


@pytest.mark.parametrize('family', FAMILIES)
def test_tokens_and_features_agree(family):
    proc, model = tiny(family)
    batch = DataCollatorForVisionPreference(proc)([ONE, TWO, NONE])
    assert count_features(model, batch) == image_places(batch['input_ids'], proc).sum()
    check_features(model, batch, proc)
    first = image_places(batch['input_ids'], proc).int().argmax(1)[0]
    batch['input_ids'][0, first] = proc.tokenizer.pad_token_id
    with pytest.raises(ValueError, match='not made for each other'): check_features(model, batch, proc)
