"Values of the wrong form and text or images that never reach the model: one case for each kind that was reported."
import base64, copy, io, json, logging

import datasets, pytest
from datasets import Dataset, Features, Image, IterableDataset, Json, List, Value
from PIL import Image as Pil

from dpo_nb.data.coverage import coverage
from dpo_nb.data.rows import ImageRows, TextRows, make_rows
from dpo_nb.data.tokenize import prepare_row
from dpo_nb.data.truncate import prepare_dataset
from dpo_nb.data.vision import DataCollatorForVisionPreference, pair_texts
from dpo_nb.toy import load_toy_pairs, load_toy_tokenizer
from dpo_nb.train.config import DPOConfig
from test_vision import PICS, processor

GEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()
    logging.Logger.warning_once.cache_clear()
    yield
    datasets.enable_progress_bars()


def user(text): return [dict(role='user', content=text)]
def assistant(text, **more): return [dict(role='assistant', content=text, **more)]


ROW = dict(prompt=user('What is 2+2?'), chosen=assistant('It is 4.'), rejected=assistant('It is 5.'))
OTHER = dict(prompt=user('What is 3+3?'), chosen=assistant('It is 6.'), rejected=assistant('It is 7.'))


def tokenizer(template=None):
    tok = load_toy_tokenizer()
    if template: tok.chat_template = template + GEN
    return tok


def ids(rows, tok=None): return [[r[f'{k}_ids'] for k in ('prompt', 'chosen', 'rejected')] for r in prepare_dataset(Dataset.from_list(rows) if isinstance(rows, list) else rows, tok or tokenizer())]
def says(rows, tok=None, side='chosen'):
    tok = tok or tokenizer()
    return [tok.decode(r[f'{side}_ids']) for r in prepare_dataset(Dataset.from_list(rows) if isinstance(rows, list) else rows, tok)]


def warned(caplog, f):
    with caplog.at_level('WARNING'): f()
    return ' '.join(r.getMessage() for r in caplog.records)


# --- text that never reaches the model ---------------------------------------------------------------------------------------------

THINK = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize('row, template, lost', [
    (ROW | dict(chosen=assistant('<think>long</think>yes')), THINK, 'content of chosen in 2'),
    (ROW | dict(chosen=assistant('yes', reasoning_content='I count.')), None, 'reasoning_content of chosen in 2'),
    (ROW | dict(chosen=assistant('yes', notes='I count.')), None, 'notes of chosen in 2'),
    (ROW | dict(system='Be brief.'), None, "column 'system' in 2"),
    (ROW | dict(question='How are you?'), None, "column 'question' in 2"),
    (ROW | dict(chosen=assistant('a', tool_calls=[dict(function=dict(name='look', arguments=dict(at='sky')))])),
     "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}", 'tool_calls of chosen in 2')])
@pytest.mark.parametrize('stream', [False, True])
def test_lost_text_is_told(row, template, lost, stream, caplog):
    data = Dataset.from_list([row, row | dict(prompt=user('And now?'))])
    if stream: data = data.to_iterable_dataset()
    said = warned(caplog, lambda: prepare_dataset(data, tokenizer(template)))
    assert 'never reaches the model' in said and lost in said, said
    assert '⟦' in said


def test_lost_text_is_counted_by_side():
    tok = tokenizer(THINK)
    rows = [ROW | dict(chosen=assistant('<think>a b</think>yes'))]*3 + [ROW, ROW | dict(prompt=user('<think>x y</think>Hi'))]
    rows = [r | prepare_row(r, tok) for r in rows]
    found = TextRows(tok, DPOConfig('x', report_to='none')).coverage(rows)
    assert (found.rows, found.prompt, found.chosen, found.rejected, found.one_sided, found.most) == (5, 1, 3, 0, 3, True)


def test_what_is_printed_differently_is_not_lost(caplog):
    trims = tokenizer("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}")
    said = warned(caplog, lambda: prepare_dataset(Dataset.from_list([ROW | dict(prompt=user('  Two\n\n words \n'), id='never seen by the model', source='a web page')]), trims))
    assert 'never reaches' not in said


def test_lossy_tokenizer_is_no_loss():
    same = str.lower
    found = coverage([dict(ROW)], lambda r: {k: same(r[k][0]['content']) for k in ('prompt', 'chosen', 'rejected')}, same)
    assert not found.lost


@pytest.mark.parametrize('how', ['set_transform', 'with_transform'])
def test_a_transform_is_kept(how, caplog):
    def polite(batch): return dict(batch, prompt=[[dict(m, content=m['content']+' Please.') for m in p] for p in batch['prompt']])
    data = Dataset.from_list([ROW, OTHER])
    if how == 'set_transform': data.set_transform(polite)
    else: data = data.with_transform(polite)
    rows = make_rows(tokenizer(), data, DPOConfig('x', report_to='none'))
    with caplog.at_level('WARNING'): done = rows.prepare(data)
    assert ['Please.' in rows.texts(r)['prompt'] for r in done] == [True, True] and 'transform is applied now' in caplog.text
    assert 'Please.' in says(data, side='prompt')[0]


# --- values of the wrong form ------------------------------------------------------------------------------------------------------

def numpy_text(talk): return str(talk).replace('}, {', '}\n {')


@pytest.mark.parametrize('write', [json.dumps, str, numpy_text, lambda x: json.dumps(x, indent=2)], ids=['json', 'python', 'numpy', 'indented'])
@pytest.mark.parametrize('columns', [('prompt', 'chosen', 'rejected'), ('chosen', 'rejected')])
@pytest.mark.parametrize('implicit', [False, True])
def test_messages_stored_as_text_are_read(write, columns, implicit):
    rows = [ROW, OTHER]
    if implicit: rows = [{k: r['prompt']+r[k] for k in ('chosen', 'rejected')} for r in rows]
    stored = [{k: write(v) if k in columns else v for k, v in r.items()} for r in rows]
    assert ids(stored) == ids(rows)
    assert ids(Dataset.from_list(stored).to_iterable_dataset()) == ids(rows)
    assert make_rows(tokenizer(), Dataset.from_list(stored), DPOConfig('x', report_to='none')).chat


def test_texts_beside_messages_that_are_stored_as_text_stay_what_they_are():
    plain = dict(prompt='2+2=', chosen='4', rejected='"5"')
    rows = prepare_dataset(Dataset.from_list([plain, {k: json.dumps(v) for k, v in ROW.items()}]), tokenizer())
    assert (rows[0]['prompt'], rows[0]['chosen'], rows[0]['rejected']) == ('2+2=', '4<|im_end|>', '"5"<|im_end|>') and rows[1]['chosen'] == ROW['chosen']
    assert ids(rows) == ids([plain]) + ids([ROW])


def test_text_that_only_looks_like_messages_stays_text():
    row = dict(prompt='Write JSON:', chosen=' [{"a": 1}]', rejected='[1] Smith')
    assert says([row]) == [' [{"a": 1}]<|im_end|>']
    with pytest.raises(ValueError, match="row 0 of the train dataset: column 'chosen' looks like messages written as text"):
        ids([row | dict(chosen="[{'role': 'user', 'content': array(['x'])}]")])


BLOCKS = [dict(type='text', text='It is'), dict(type='text', text=' 4.')]


def test_blocks_of_text_are_joined_where_the_template_prints_content():
    assert ids([ROW | dict(chosen=assistant(BLOCKS))]) == ids([ROW])
    iterates = tokenizer("{% for m in messages %}{{ m.role }}: {% for b in m.content %}{{ b.text }}|{% endfor %}<|im_end|>\n{% endfor %}")
    split = {k: [dict(m, content=[dict(type='text', text=t) for t in m['content'].split(' ')]) for m in v] for k, v in ROW.items()}
    assert 'It|is|4.|' in says([split], iterates)[0]


@pytest.mark.parametrize('block, words', [
    (dict(type='image'), "a block of type 'image', and what reads it here reads only text"), (dict(type='video', video='a.mp4'), 'videos are not supported'),
    (dict(type='thinking', thinking='Hm.'), "'thinking', which the chat template does not print")])
def test_blocks_that_cannot_be_shown_are_refused(block, words):
    with pytest.raises(ValueError, match="row 1 of the train dataset: column 'chosen' has .*"+words): list(prepare_dataset(IterableDataset.from_generator(lambda: iter([ROW, ROW | dict(chosen=assistant([dict(type='text', text='a'), block]))])), tokenizer()))


def with_call(arguments): return ROW | dict(chosen=assistant('', tool_calls=[dict(type='function', function=dict(name='look', arguments=arguments))]))


ENCODES = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize('template', [ENCODES, ENCODES.replace(' | tojson', '')], ids=['tojson', 'as it is'])
@pytest.mark.parametrize('arguments', ['{"at": "sky"}', dict(at='sky')], ids=['text', 'dict'])
def test_arguments_are_encoded_once(template, arguments):
    assert 'look({"at": "sky"})' in says([with_call(arguments)], tokenizer(template))[0]


def test_whole_calls_printed_as_json_hold_an_object():
    assert '"arguments": {"at": "sky"}' in says([with_call('{"at": "sky"}')])[0]


def test_nulls_of_json_are_kept_and_those_of_arrow_are_not():
    message = dict(role=Value('string'), content=Value('string'), tool_calls=List(dict(function=dict(name=Value('string'), arguments=Json()))))
    row = {k: [dict(m, tool_calls=None) for m in v] for k, v in ROW.items()} | dict(chosen=assistant('', tool_calls=[dict(function=dict(name='look', arguments=dict(day=None, at=1)))]))
    typed = Dataset.from_list([row], features=Features({k: [message] for k in ROW}))
    for data in (typed, typed.to_iterable_dataset()): assert 'look({"day": null, "at": 1})' in says(data, tokenizer(ENCODES))[0]
    filled = Dataset.from_list([row, with_call(dict(at=2))])
    assert says(filled, tokenizer(ENCODES))[1].startswith('look({"at": 2})')


@pytest.mark.parametrize('content', [4, True, dict(text='4'), ['4']], ids=str)
def test_content_that_is_no_text_names_row_and_column(content):
    data = IterableDataset.from_generator(lambda: iter([ROW, ROW | dict(rejected=assistant(content))]))
    with pytest.raises(ValueError, match=r"row 1 of the train dataset: column 'rejected': message 0 has the content .*a string, or a list of blocks"): list(prepare_dataset(data, tokenizer()))


def test_half_text_half_messages(caplog):
    text = dict(prompt='What is 2+2?', chosen=' four', rejected=' five')
    data = Dataset.from_list([text, ROW, text, OTHER], features=Features({k: Json() for k in ROW}))
    with caplog.at_level('WARNING'): done = ids(data)
    assert done == [ids([text])[0], ids([ROW])[0], ids([text])[0], ids([OTHER])[0]]
    assert 'of 4 rows looked at, 2 are conversations and 2 plain text' in caplog.text


@pytest.mark.parametrize('role, meant', [('gpt', 'assistant'), ('model', 'assistant'), ('human', 'user'), ('Assistant', 'assistant')])
def test_roles_the_template_does_not_know(role, meant):
    side = 'prompt' if meant == 'user' else 'chosen'
    rows = [ROW, ROW | {side: [dict(role=role, content='Hi')]}]
    with pytest.raises(ValueError, match=f"row 1 of the train dataset: column '{side}' has a message of role '{role}'.*'{meant}' is meant.*standard_row"): ids(rows)


def test_a_role_of_the_template_itself_is_right():
    gemma = tokenizer("{% for m in messages %}<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
    assert says([ROW | dict(chosen=[dict(role='model', content='It is 4.')])], gemma) == says([ROW], gemma)


def test_sharegpt_is_refused_with_the_line_that_converts_it():
    from dpo_nb.data.messages import standard_row
    names = dict(user='human', assistant='gpt')
    rows = [{k: [{'from': names[m['role']], 'value': m['content']} for m in v] for k, v in r.items()} for r in (ROW, OTHER)]
    with pytest.raises(ValueError, match="row 0 .*rename 'from' to 'role'.*dataset.map\\(standard_row\\)"): ids(rows)
    assert ids(Dataset.from_list(rows).map(standard_row)) == ids([ROW, OTHER])


def test_a_role_nobody_knows_is_counted(caplog):
    assert 'in 1 of 1 rows a message has a role that neither we nor the chat template know' in warned(caplog, lambda: ids([ROW | dict(prompt=user('Hi')+[dict(role='critic', content='Hm.')])]))


# --- images that nobody reads ------------------------------------------------------------------------------------------------------

def png(i=0):
    out = io.BytesIO()
    PICS[i].save(out, 'PNG')
    return out.getvalue()


ASKS = dict(prompt=user('What is this?'), chosen=assistant('A red square.'), rejected=assistant('A blue circle.'))
ARGS = dict(report_to='none', max_length=None, use_cpu=True, bf16=False)
VLMS = pytest.mark.parametrize('family', ['llava', 'qwen2_vl'])


def batch(row, family='llava'): return DataCollatorForVisionPreference(processor(family))([row])


def equal(a, b):
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


@VLMS
@pytest.mark.parametrize('block', [
    lambda: dict(type='image', image=PICS[0]), lambda: dict(type='image', image=png()), lambda: dict(type='image', image=dict(bytes=png(), path=None)),
    lambda: dict(type='image', base64=base64.b64encode(png()).decode()),
    lambda: dict(type='image_url', image_url=dict(url='data:image/png;base64,'+base64.b64encode(png()).decode()))], ids=['pil', 'bytes', 'dict', 'base64', 'openai'])
def test_images_inside_of_messages_are_read(family, block):
    row = ASKS | dict(prompt=user([block(), dict(type='text', text='What is this?')]))
    equal(batch(row, family), batch(ASKS | dict(image=PICS[0]), family))
    implicit = {k: row['prompt']+row[k] for k in ('chosen', 'rejected')}
    equal(batch(implicit, family), batch(row, family))
    data = IterableDataset.from_generator(lambda: iter([ASKS, row]))
    assert isinstance(make_rows(processor(family), data, DPOConfig('x', **ARGS)), ImageRows)


def test_an_image_inside_of_a_message_needs_a_model_that_reads_images():
    row = ASKS | dict(prompt=user([dict(type='image', image=png()), dict(type='text', text='What is this?')]))
    with pytest.raises(ValueError, match='reads only text'): make_rows(tokenizer(), Dataset.from_list([row]), DPOConfig('x', **ARGS))


@VLMS
@pytest.mark.parametrize('form', ['bytes', 'dict', 'path', 'path dict', 'cast'])
def test_forms_of_an_image_column(form, family, tmp_path):
    path = tmp_path/'a.png'
    PICS[0].save(path)
    value = dict(bytes=png(), dict=dict(bytes=png(), path=None), path=str(path), cast=str(path)).get(form, dict(bytes=None, path=str(path)))
    data = Dataset.from_list([ASKS | dict(image=value), ASKS | dict(image=value)])
    if form == 'cast': data = data.cast_column('image', Image())
    equal(batch(data[0], family), batch(ASKS | dict(image=PICS[0]), family))
    equal(batch(ASKS | dict(images=[value]), family), batch(ASKS | dict(image=PICS[0]), family))


@pytest.mark.parametrize('value, words', [('https://example.org/a.png', 'does not read from a network; .*cast_column'), ('gone/a.png', 'no such file here; .*cast_column'), (b'abc', 'cannot be read')])
def test_images_that_cannot_be_read_are_refused_with_the_row(value, words):
    rows = make_rows(processor('llava'), (data := Dataset.from_list([ASKS | dict(image=png()), ASKS | dict(image=value)] if isinstance(value, bytes) else [ASKS | dict(image=value)])), DPOConfig('x', **ARGS))
    rows.collate_with()
    with pytest.raises(ValueError, match=r'row \d of the train dataset.*'+words): rows.prepare(data)


@pytest.mark.parametrize('column, value, words', [
    ('photo', PICS[0], r"rename_column\('photo', 'image'\)"), ('image_path', 'a.png', r"rename_column\('image_path', 'image'\)"), ('pictures', [PICS[0]], r"rename_column\('pictures', 'images'\)"),
    ('mine', PICS[0], "'mine'"), ('videos', ['a.mp4'], "column 'videos', and only images are supported"), ('video', b'abc', "column 'video'")])
def test_columns_beside_a_model_that_reads_images(column, value, words):
    data = Dataset.from_list([ASKS | {column: value}])
    rows = make_rows(processor('llava'), data, DPOConfig('x', **ARGS))
    with pytest.raises(ValueError, match=words): rows.prepare(data)


def test_a_video_beside_images_is_refused_and_a_path_is_not():
    data = Dataset.from_list([ASKS | dict(image=PICS[0], image_path='a.png')])
    rows = make_rows(processor('llava'), data, DPOConfig('x', **ARGS))
    assert len(rows.prepare(data)) == 1
    with pytest.raises(ValueError, match="'video'"): rows.prepare(data.add_column('video', ['a.mp4']))
    with pytest.raises(ValueError, match='videos are not supported'): pair_texts(ASKS | dict(prompt=user([dict(type='video', video='a.mp4')])), processor('llava'))


@VLMS
def test_image_written_in_the_text_is_a_place(family):
    row = ASKS | dict(prompt=user('Is <image> like <image>?'), images=PICS[:2])
    blocks = [dict(type='text', text='Is '), dict(type='image'), dict(type='text', text=' like '), dict(type='image'), dict(type='text', text='?')]
    equal(batch(row, family), batch(row | dict(prompt=user(blocks)), family))
    with pytest.raises(ValueError, match='has 1 images, and its messages have places for 2'): batch(row | dict(images=PICS[:1]), family)


def test_image_written_in_plain_text_for_a_processor_that_writes_it_otherwise():
    with pytest.raises(ValueError, match="writes <image>, which this processor does not know"):
        batch(dict(image=PICS[0], prompt='<image>What?', chosen=' a', rejected=' b'), 'qwen2_vl')


def test_lost_text_of_rows_with_images_is_told(caplog):
    data = Dataset.from_list([ASKS | dict(image=PICS[0], chosen=assistant('Red.', reasoning_content='I look.'))]*2)
    rows = make_rows(processor('llava'), data, DPOConfig('x', **ARGS))
    rows.collate_with()
    assert 'reasoning_content of chosen in 2' in warned(caplog, lambda: rows.prepare(data))


def test_embedded_pairs_say_nothing(caplog):
    assert warned(caplog, lambda: prepare_dataset(load_toy_pairs()['train'].select(range(30)), tokenizer())) == ''
