"""Images: the collator makes TRL 1.16.0's batches, for eight families of processors; training logs the same numbers.

Processors and models are made here (`tiny_vlms`); TRL runs live on copies of the same rows."""
import copy, json
from functools import cache

import pytest, torch
from conftest import live_trl
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
    "The batch of TRL's collator, which changes its rows; on images it is given every prompt's twice."
    DataCollatorForVisionPreference = live_trl('trl.trainer.dpo_trainer').DataCollatorForVisionPreference
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


def test_padding_to_a_multiple_is_only_padding():
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


# Training

ROWS = [{k: r[k] for k in ('prompt', 'chosen', 'rejected')} | dict(images=[r['image']]) for r in draw_shapes(8, size=40)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Family → a folder with its tiny model."
    where = tmp_path_factory.mktemp('vlms')

    @cache
    def save(family):
        tiny(family)[1].save_pretrained(where/family)
        return str(where/family)
    return save


def trainer(lib, folder, family, out, data=ROWS, **kw):
    own = {k: kw.pop(k) for k in ('peft_config', 'eval_dataset', 'data_collator') if k in kw}
    base = dict(max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1, bf16=False, use_cpu=True, save_strategy='no',
                report_to='none', disable_tqdm=True, seed=1, max_length=None)
    data = Dataset.from_list(data) if isinstance(data, list) else data
    return lib.DPOTrainer(folder(family), args=lib.DPOConfig(str(out/lib.__name__), **(base | kw)), train_dataset=data, processing_class=processor(family), **own)


def both_log_the_same(folder, family, out, **kw):
    trl = live_trl('trl')
    logs = []
    for lib in (dpo_nb, trl):
        t = trainer(lib, folder, family, out, **kw)
        t.train()
        logs.append(t.state.log_history)
    same(*logs)


@pytest.mark.parametrize('family', FAMILIES)
def test_training_logs_what_trl_logs(family, folder, tmp_path):
    both_log_the_same(folder, family, tmp_path)


def test_mixed_rows_and_length_limit_log_what_trl_logs(folder, tmp_path):
    rows = [ONE, NONE, TURNS, NONE | dict(chosen=says('Hello.'))]
    rows = [r | dict(prompt=[dict(m) for m in r['prompt']]) for r in rows]
    both_log_the_same(folder, 'llava', tmp_path, data=rows*2, max_length=256)


def test_evaluation_logs_what_trl_logs(folder, tmp_path):
    held = [r | dict(images=r['images']) for r in ROWS[:4]]
    both_log_the_same(folder, 'gemma3', tmp_path, eval_dataset=Dataset.from_list(held), eval_strategy='steps', eval_steps=3, per_device_eval_batch_size=2)


@pytest.mark.parametrize('family', ['llava', 'qwen2_vl'])
def test_text_for_a_vision_language_model_logs_what_trl_logs(family, folder, tmp_path):
    text = [dict(prompt=[dict(role='user', content=f'Which number is {i}?')], chosen=says(f'It is {i}.'), rejected=says('No idea.')) for i in range(6)]
    both_log_the_same(folder, family, tmp_path, data=text)


def test_lora_on_the_language_part_logs_what_trl_logs(folder, tmp_path):
    both_log_the_same(folder, 'smolvlm', tmp_path, peft_config=LoraConfig(r=4, target_modules=r'.*text_model.*\.(q_proj|v_proj)'))


@pytest.mark.parametrize('family', FAMILIES)
def test_vision_encoder_and_language_model_get_gradients(family, folder, tmp_path):
    t = trainer(dpo_nb, folder, family, tmp_path)
    t.model.train()
    t.compute_loss(t.model, t._prepare_inputs(t.data_collator(ROWS[:2]))).backward()
    moved = {n for n, w in t.model.named_parameters() if w.grad is not None and w.grad.abs().max() > 0}
    assert any('vision' in n or 'visual' in n for n in moved) and any('language_model' in n or 'text_model' in n for n in moved)


def test_a_stream_trains_like_a_dataset(folder, tmp_path):
    logs = []
    for data in (Dataset.from_list(ROWS), IterableDataset.from_generator(lambda: iter(ROWS))):
        t = trainer(dpo_nb, folder, 'llava', tmp_path, data=data, train_sampling_strategy='sequential')
        t.train()
        logs.append([h['loss'] for h in t.state.log_history if 'loss' in h])
    assert logs[0] == pytest.approx(logs[1], abs=1e-5)


def test_the_reference_is_asked_about_every_image(folder, tmp_path):
    "Rows with the same words and other images are other rows, so nothing is remembered, and nothing packed."
    t = trainer(dpo_nb, folder, 'llava', tmp_path, max_steps=-1, num_train_epochs=2)
    assert 'remembered' not in t.reference.kind and not t.model.config._attn_implementation.endswith('shared_prefix')


def test_weights_per_pair(folder, tmp_path):
    data = Dataset.from_list([r | dict(w=float(i % 2)) for i, r in enumerate(ROWS)])
    t = trainer(dpo_nb, folder, 'llava', tmp_path, data=data, weight_column='w')
    assert t.data_collator([t.train_dataset[i] for i in range(4)])['pair_weight'].tolist() == [0, 1, 0, 1]
    t.train()


def test_the_processor_is_saved_with_the_model(folder, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor
    t = trainer(dpo_nb, folder, 'gemma3', tmp_path)
    t.save_model(str(tmp_path/'saved'))
    assert isinstance(AutoProcessor.from_pretrained(tmp_path/'saved'), ProcessorMixin)
    again = dpo_nb.DPOTrainer(str(tmp_path/'saved'), args=t.args, train_dataset=Dataset.from_list(ROWS))  # finds both by the name
    assert type(again.model) is type(t.model) and isinstance(again.processing_class, ProcessorMixin)
    assert isinstance(again.model, type(AutoModelForImageTextToText.from_pretrained(tmp_path/'saved')))


@pytest.mark.parametrize('kw, words', [
    (dict(max_length=64, truncation_mode='keep_end'), "truncation_mode='keep_end' would cut the prompt"),
    (dict(precompute_ref_log_probs=True), 'precompute_ref_log_probs=True is not supported with images'),
    (dict(padding_free=True), 'padding_free=True is not supported with images'),
    (dict(loss_on='assistant'), "loss_on='assistant' is not supported with images"),
    (dict(max_length=64, overlong='drop'), "overlong='drop' is not supported with images"),
    (dict(max_length=6), 'row 0 of the train dataset has image tokens up to place'),
])
def test_refusals(kw, words, folder, tmp_path):
    with pytest.raises(ValueError, match=words): trainer(dpo_nb, folder, 'llava', tmp_path, **kw)


def test_refusals_of_rows(folder, tmp_path):
    with pytest.raises(ValueError, match='row 1 of the train dataset cannot be read: .*has 2 images, and its messages have places for 1'):
        trainer(dpo_nb, folder, 'llava', tmp_path, data=[ONE | dict(prompt=user(None, 'Eh?')), ONE | dict(prompt=user(None, 'Eh?'), images=PICS[:2])])
    args = dpo_nb.DPOConfig(str(tmp_path), report_to='none', use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="a column 'image' or 'images', and a .* reads only text"):
        dpo_nb.DPOTrainer(folder('llava'), args=args, train_dataset=Dataset.from_list(ROWS), processing_class=processor('llava').tokenizer)


def test_a_processor_of_another_family_is_found_out(folder, tmp_path):
    wrong = copy.copy(processor('llava'))
    wrong.num_additional_image_tokens = 3
    args = dpo_nb.DPOConfig(str(tmp_path), report_to='none', use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match='image tokens where the model makes'):
        dpo_nb.DPOTrainer(folder('llava'), args=args, train_dataset=Dataset.from_list(ROWS), processing_class=wrong)


def test_scores_and_token_rewards_of_pictures(folder, tmp_path):
    from dpo_nb.diagnose.pair_rewards import pair_tokens
    t = trainer(dpo_nb, folder, 'llava', tmp_path)
    t.train()
    data = Dataset.from_list([r | dict(note='x') for r in ROWS])
    scored = dpo_nb.score(t.model, folder('llava'), data, processor('llava'), batch_size=3, bf16=False, use_cpu=True)
    pairs = pair_tokens(t, ROWS, 3)
    assert [p['margin'] for p in pairs] == pytest.approx(scored['margin'][:3], abs=1e-5)
    assert '<image>' in pairs[0]['prompt'] and ''.join(x for x, _ in pairs[0]['chosen']).startswith(ROWS[0]['chosen'][0]['content'])


def test_what_the_guide_shows_was_measured_with_the_scripts_settings():
    import train_shapes
    found = json.loads(train_shapes.OUT.read_text(encoding='utf-8'))
    assert found['settings'] == train_shapes.SETTINGS
    proc, model = train_shapes.build(0)
    assert found['parameters'] == sum(w.numel() for w in model.parameters())
    collate = DataCollatorForVisionPreference(proc)
    rows = draw_shapes(40, 1)
    losses = train_shapes.sft(model, collate, draw_shapes(train_shapes.SETTINGS['train'], 0), 2, train_shapes.SETTINGS['sft_lr'], 0)
    assert losses == pytest.approx(found['sft_loss'][:2], rel=.02)  # the first steps of the run are still these
    assert len(train_shapes.margins(model, collate, rows)) == 40


def test_the_doctor_reads_rows_with_pictures(folder, tmp_path):
    t = trainer(dpo_nb, folder, 'llava', tmp_path, learning_rate=1e-4)
    said = str(t.doctor())
    assert '<image>' in said and 'A ' in said


def test_the_command_line_trains_on_a_folder_of_pictures(folder, tmp_path):
    "Images beside a metadata.jsonl, as `datasets` reads them; the model and its processor are found in one folder."
    from dpo_nb.run.job import ModelArguments, ScriptArguments, build_job, run_job
    model, data = tmp_path/'model', tmp_path/'data'/'train'
    tiny('gemma3')[1].save_pretrained(model)
    processor('gemma3').save_pretrained(model)
    data.mkdir(parents=True)
    with (data/'metadata.jsonl').open('w') as f:
        for i, r in enumerate(draw_shapes(6, size=40)):
            r['image'].save(data/f'{i}.png')
            f.write(json.dumps({k: r[k] for k in ('prompt', 'chosen', 'rejected')} | dict(file_name=f'{i}.png'))+'\n')
    args = dpo_nb.DPOConfig(str(tmp_path/'out'), max_steps=2, per_device_train_batch_size=2, bf16=False, use_cpu=True, report_to='none', disable_tqdm=True, logging_steps=1)
    job = build_job(ScriptArguments(dataset_name=str(tmp_path/'data'), num_samples=2), ModelArguments(model_name_or_path=str(model)), args)
    said = []
    report = run_job(job, say=said.append)
    assert '<start_of_image>' in said[0] and 'AutoModelForImageTextToText' in said[-1] and 'image_soft_token' in report.read_text(encoding='utf-8')
