"From rows to batches: equal to TRL 1.16.0 wherever TRL is right, and one sentence wherever a row cannot be trained on."
import copy, dataclasses, json, logging, random
from pathlib import Path
from types import SimpleNamespace

import datasets, pytest, torch
from conftest import live_trl
from datasets import Dataset, IterableDataset, load_dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import dpo_nb.data.truncate as truncate_module
from dpo_nb.data.collator import DataCollatorForPreference
from dpo_nb.data.formats import token_columns, unread_prompt
from dpo_nb.data.tokenize import describe, encode_chats, encode_plain, prepare_row, prepare_rows, render_ids, shared_head, special_pattern
from dpo_nb.data.truncate import pair_lengths, prepare_dataset
from dpo_nb.toy import load_helpful_mini, load_toy_pairs, load_toy_tokenizer

DEMO = Path(__file__).resolve().parents[2]/'shared'/'data'/'dpo_en_demo.jsonl'
CHATML = '''{%- if tools %}<|im_start|>system
Tools: {{ tools | tojson }}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] or '' }}{% for c in m['tool_calls'] or [] %}<tool_call>{{ c | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}'''
LOG = 'dpo_nb.data.truncate'


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()
    logging.Logger.warning_once.cache_clear()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope='session')
def toy(): return load_toy_tokenizer()


@pytest.fixture(scope='session')
def gpt2():
    "A byte-level byte-pair tokenizer like GPT-2's, trained on the spot, with a ChatML template that knows tools and thinking."
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [m['content'] or '' for r in load_helpful_mini()['train'] for k in ('prompt', 'chosen', 'rejected') for m in r[k]]
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1500, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                                       special_tokens=['<|endoftext|>', '<|im_start|>', '<|im_end|>']))
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token='<|endoftext|>', pad_token='<|endoftext|>', chat_template=CHATML)


@pytest.fixture
def tokenizer(request): return request.getfixturevalue(request.param)


both_tokenizers = pytest.mark.parametrize('tokenizer', ['toy', 'gpt2'], indirect=True)


@pytest.fixture(scope='session')
def theirs():
    "TRL's preparation of a dataset, without a trainer around it."
    trl = live_trl('trl')

    def prepare(dataset, tokenizer, max_length=None, truncation_mode='keep_start'):
        args = SimpleNamespace(max_length=max_length, truncation_mode=truncation_mode, dataset_num_proc=None)
        return trl.DPOTrainer._prepare_dataset(SimpleNamespace(_tokenizer=tokenizer), dataset, tokenizer, args, 'train')
    return prepare


def same(ours, theirs, columns=(*token_columns, 'prompt', 'chosen', 'rejected')):
    "Every row's ids and texts; the number of rows; the names of the columns."
    assert len(ours) == len(theirs) and set(ours.column_names) == set(theirs.column_names)
    for c in columns: assert ours[c][:] == theirs[c][:], c


def user(text): return dict(role='user', content=text)
def assistant(text): return dict(role='assistant', content=text)


TALK = dict(prompt=[user('What colour is the sky?')], chosen=[assistant('It is blue.')], rejected=[assistant('It is green.')])
TEXT = dict(prompt='The sky is', chosen=' blue.', rejected=' green.')


# --- the same ids as TRL ---------------------------------------------------------------------------------------------------------

SCHEMA = dict(type='function', function=dict(name='read_file', description='Read', parameters=dict(type='object', properties=dict(path=dict(type='string')))))


def plain_rows(rng, n, implicit):
    "Text cut anywhere: at words, inside them, after a space or a line break."
    texts = [r['chosen'][0]['content'] for r in load_toy_pairs()['train'].select(range(100))] + ['Füße, naïve — 北京 🙂 ok?', 'x = [1, 2,\n\t3]  # two  spaces ']
    rows = []
    while len(rows) < n:
        text, other = rng.choice(texts), rng.choice(texts)
        cut = rng.randrange(2, len(text)-1)
        p, c, r = text[:cut]+rng.choice(['', '', ' ', '\n']), text[cut:], other[rng.randrange(len(other)//2):]
        if not c.strip() or not r.strip() or (implicit and (not p.strip() or c.startswith(r) or r.startswith(c))): continue
        eos = rng.choice(['', '', '<|im_end|>', '<|endoftext|>'])
        rows.append(dict(chosen=p+c+eos, rejected=p+r, score=rng.random()) if implicit else dict(prompt=p, chosen=c+eos, rejected=r, score=rng.random()))
    return rows


def chat_rows(rng, n, implicit, tools):
    "Conversations of one to five turns, with a system message now and then."
    words = ['Hi.', 'Read a.txt ', ' What is 2+2?\n', 'Fine, thanks', '', 'Füße 🙂', '4', '<|im_end|> is a token']
    rows = []
    for _ in range(n):
        prompt = [dict(role='system', content=rng.choice(words))]*rng.randint(0, 1)
        for _ in range(rng.randint(0, 2)): prompt += [user(rng.choice(words)), assistant(rng.choice(words))]
        prompt += [user(rng.choice(words))]
        chosen, rejected = ([assistant(f'{rng.choice(words)}{side}')] + [user('And?'), assistant('So.')]*rng.randint(0, 1) for side in 'ab')
        row = dict(chosen=prompt+chosen, rejected=prompt+rejected) if implicit else dict(prompt=prompt, chosen=chosen, rejected=rejected)
        if tools == 'json': row['tools'] = rng.choice([json.dumps([SCHEMA]), json.dumps([SCHEMA, SCHEMA]), None])
        if tools == 'list': row['tools'] = [SCHEMA]*rng.randint(1, 2)
        if tools == 'kwargs': row['chat_template_kwargs'] = dict(enable_thinking=rng.random() < .5)
        rows.append(row | dict(id=f'r{len(rows)}'))
    return rows


@pytest.mark.parametrize('limit', [dict(), dict(max_length=24), dict(max_length=24, truncation_mode='keep_end')], ids=['whole', 'keep_start', 'keep_end'])
@pytest.mark.parametrize('implicit', [False, True], ids=['explicit', 'implicit'])
@pytest.mark.parametrize('kind', ['plain', 'chat', 'json', 'list', 'kwargs'])
@both_tokenizers
def test_same_ids_as_trl(tokenizer, kind, implicit, limit, theirs):
    rng = random.Random(f'{kind}{implicit}{limit}')
    d = Dataset.from_list(plain_rows(rng, 60, implicit) if kind == 'plain' else chat_rows(rng, 60, implicit, kind))
    if limit: limit = limit | dict(max_length=int(sorted(pair_lengths(prepare_dataset(d, tokenizer))[:, 0])[40]) + 1)   # a third of the prompts fill it
    ours, other = prepare_dataset(d, tokenizer, **limit), theirs(d, tokenizer, **limit)
    assert 20 < len(ours) <= 60 and (len(ours) < 60) == (limit.get('truncation_mode') is None and bool(limit))
    same(ours, other)
    stream = list(prepare_dataset(d.to_iterable_dataset(), tokenizer, **limit))
    assert [[r[c] for c in token_columns] for r in stream] == [[r[c] for c in token_columns] for r in ours]


@pytest.mark.parametrize('layout', [None, 'single', 'implicit', 'multi_turn', 'tools'])
@both_tokenizers
def test_helpful_mini_goes_through_as_in_trl(tokenizer, layout, theirs):
    both = load_helpful_mini(layout)
    for split in both:
        same(prepare_dataset(both[split], tokenizer, max_length=400), theirs(objects(both[split]), tokenizer, max_length=400), token_columns)


def objects(d):
    "Arguments of calls as objects, not as JSON texts, which these templates would encode a second time."
    def change(row):
        talks = {k: [dict(m) for m in row[k]] for k in ('prompt', 'chosen', 'rejected') if k in row}
        for m in (m for talk in talks.values() for m in talk if m.get('tool_calls')):
            m['tool_calls'] = [dict(c, function=dict(c['function'], arguments=json.loads(c['function']['arguments']))) for c in m['tool_calls']]
        return {k: [{f: v for f, v in m.items() if v is not None} for m in talk] for k, talk in talks.items()}
    message = datasets.Json()
    return d.map(change, features=datasets.Features(dict(d.features) | {k: [message] for k in ('prompt', 'chosen', 'rejected') if k in d.features}))


@pytest.mark.skipif(not DEMO.exists(), reason='the shared demo data is not here')
def test_real_pairs_go_through_as_in_trl(gpt2, theirs):
    d = Dataset.from_list([json.loads(l) for l in DEMO.read_text(encoding='utf-8').splitlines()[:60]])
    same(prepare_dataset(d, gpt2, max_length=512), theirs(d, gpt2, max_length=512))


# --- the same batches as TRL -----------------------------------------------------------------------------------------------------

def test_collator_has_trls_arguments():
    theirs = live_trl('trl.trainer.dpo_trainer').DataCollatorForPreference
    signature = lambda c: [(f.name, f.default) for f in dataclasses.fields(c)]
    assert signature(DataCollatorForPreference) == signature(theirs)


@pytest.mark.parametrize('seed', range(200))
def test_same_batch_as_trl(seed):
    theirs = live_trl('trl.trainer.dpo_trainer').DataCollatorForPreference
    rng = random.Random(seed)
    ids = lambda low: [rng.randrange(1000) for _ in range(rng.randint(low, 12))]
    refs = [(), ('ref_chosen_logps', 'ref_rejected_logps'), ('ref_chosen_logps',), ('ref_rejected_logps',)][seed % 4]
    examples = [dict(prompt_ids=ids(0), chosen_ids=ids(1), rejected_ids=ids(1), **{k: rng.uniform(-300, 0) for k in refs}, score=1) for _ in range(rng.randint(1, 6))]
    kw = dict(pad_token_id=rng.randrange(1000), max_length=[None, 1, 5, 12, 30][seed % 5], truncation_mode=['keep_start', 'keep_end'][seed//5 % 2],
              pad_to_multiple_of=[None, 1, 7, 8, 64][seed//10 % 5])
    before = copy.deepcopy(examples)
    ours, other = DataCollatorForPreference(**kw)(examples), theirs(**kw)(copy.deepcopy(examples))
    assert examples == before and list(ours) == list(other)
    for k in ours: assert ours[k].dtype == other[k].dtype and torch.equal(ours[k], other[k]), k


# --- where TRL is silent or puzzling, and this is not ------------------------------------------------------------------------------

@pytest.mark.parametrize('rows, silently', [
    ([dict(question='Name the capital of France.', chosen='The answer is Paris.', rejected='The answer is Lyon.')], 'The answer is'),
    ([dict(question='Capital?', chosen='Paris.', rejected='Lyon.')], ''),
    ([dict(chosen='The sky', rejected='The sky is blue')], 'The sk'),
    ([TALK | dict(chosen=TALK['prompt']+TALK['chosen'], rejected=TALK['prompt']+TALK['rejected'])], TALK['prompt'])])
def test_trl_trains_on_what_is_refused(rows, silently, toy, theirs):
    assert theirs(Dataset.from_list(rows), toy)[0]['prompt'] == silently
    with pytest.raises(ValueError): prepare_dataset(Dataset.from_list(rows), toy)


def test_trl_fails_where_a_sentence_helps(toy, theirs):
    h4 = Dataset.from_list([dict(TALK, prompt='What colour is the sky?')])
    with pytest.raises((TypeError, AttributeError)): theirs(h4, toy)        # which of the two depends on the order of a set
    with pytest.raises(KeyError): theirs(Dataset.from_list([dict(prompt='a', rejected='b')]), toy)


def test_fields_that_arrow_filled_with_none(toy, theirs):
    "Tools with different parameters, stored as structs: every tool gets the other's parameters with the value None."
    tool = lambda name, **properties: dict(type='function', function=dict(name=name, parameters=dict(type='object', properties=properties)))
    tools = [tool('weather', city=dict(type='string')), tool('clock', zone=dict(type='string'))]
    d = Dataset.from_list([TALK | dict(tools=tools)])
    assert d[0]['tools'] != tools
    assert prepare_dataset(d, toy)[0]['prompt_ids'] == render_ids(toy, TALK['prompt'], tools=tools, add_generation_prompt=True)
    assert theirs(d, toy)[0]['prompt_ids'] != prepare_dataset(d, toy)[0]['prompt_ids']
    called = TALK | dict(chosen=[dict(role='assistant', content=None, tool_calls=[dict(function=dict(name='f', arguments=dict(a=1))), dict(function=dict(name='g', arguments=dict(b=2)))])])
    text = toy.decode(prepare_dataset(Dataset.from_list([called]), toy)[0]['chosen_ids'])
    assert 'null' not in text and 'None' not in text and '"b": 2' in text


def test_first_tool_call_after_many_rows(toy):
    "The type of `tool_calls` in the extracted prompt cannot be guessed from the first thousand rows."
    none = lambda text: dict(user(text), tool_calls=None)
    call = dict(role='assistant', content='', tool_calls=[dict(name='f')])
    rows = [dict(chosen=[none('Hi'), dict(assistant('x'), tool_calls=None)], rejected=[none('Hi'), dict(assistant('y'), tool_calls=None)])]*1100
    rows += [dict(chosen=[none('Hi'), call, none('So?'), assistant('x')], rejected=[none('Hi'), call, none('So?'), assistant('y')])]
    done = prepare_dataset(Dataset.from_list(rows), toy)
    assert len(done) == 1101 and done[-1]['prompt'][1]['tool_calls'] == [dict(name='f')]


# --- refusals: row, column and way out ---------------------------------------------------------------------------------------------

REFUSED = {
    'null prompt': (dict(TEXT, prompt=None), "column 'prompt' is None"),
    'number': (dict(TEXT, rejected=None), "column 'rejected' is None"),
    'empty answer': (dict(TEXT, chosen=''), "column 'chosen' is empty"),
    'blank answer': (dict(TEXT, rejected=' \n'), "column 'rejected' is empty"),
    'no message': (dict(TALK, chosen=[]), "column 'chosen' is an empty list"),
    'empty message': (dict(TALK, rejected=[assistant('')]), "column 'rejected' is empty"),
    'answer begins with a user': (dict(TALK, chosen=[user('And now?'), assistant('Blue.')]), "begins with a message of role 'user'"),
    'prompt repeated': (dict(TALK, chosen=TALK['prompt']+TALK['chosen']), "column 'chosen' repeats the prompt"),
    'text repeated': (dict(prompt='The sky is', chosen='The sky is blue.', rejected='The sky is red.'), "column 'chosen' repeats the prompt"),
    'no content': (dict(TALK, prompt=[dict(role='user', content=None)]), "has no 'content'"),
    'no role': (dict(TALK, prompt=[dict(role=None, content='Hi')]), "must be a dict such as"),
    'no beginning': (dict(chosen='4', rejected='5'), 'share no beginning'),
    'only a space in common': (dict(chosen=' Paris', rejected=' Lyon'), 'share no beginning'),
    'identical': (dict(chosen='The sky', rejected='The sky'), 'are identical'),
    'prefix': (dict(chosen='The sky', rejected='The sky is blue'), "nothing is left of column 'chosen'"),
    'identical talk': (dict(chosen=TALK['prompt']+TALK['chosen'], rejected=TALK['prompt']+TALK['chosen']), 'are identical'),
    'answers only': (dict(chosen=TALK['chosen'], rejected=TALK['rejected']), 'share no beginning'),
    'parts at a user': (dict(chosen=TALK['prompt']+TALK['chosen'], rejected=TALK['prompt']+[user('Hm?'), assistant('x')]), "begins with a message of role 'user'"),
    'tools are not JSON': (dict(TALK, tools='[{'), "column 'tools' is not JSON"),
    'tools are no list': (dict(TALK, tools='{"a": 1}'), "column 'tools' holds a dict"),
}


def good_like(row):
    "A good row with the same columns."
    out = dict(TALK) if isinstance(next(v for v in row.values() if v is not None), list) else dict(TEXT)
    if 'prompt' not in row: out = {k: out['prompt']+out[k] for k in ('chosen', 'rejected')}
    return out | ({'tools': None} if 'tools' in row else {})


@pytest.mark.parametrize('case', REFUSED)
@pytest.mark.parametrize('kind', ['dataset', 'stream'])
def test_refused_by_row_and_column(case, kind, toy):
    row, says = REFUSED[case]
    d = Dataset.from_list([*[good_like(row)]*70, row, good_like(row)])
    with pytest.raises(ValueError) as e:
        if kind == 'dataset': prepare_dataset(d, toy, name='eval')
        else: list(prepare_dataset(d.to_iterable_dataset(), toy, name='eval'))
    assert type(e.value) is ValueError and str(e.value).startswith('row 70 of the eval dataset') and says in str(e.value), e.value
    assert '\n' not in str(e.value) and len(str(e.value)) < 400


MIXED = {
    'H4, prompt in the messages': (dict(prompt='Hi', chosen=[user('Hi'), assistant('a')], rejected=[user('Hi'), assistant('b')]), "remove_columns('prompt')"),
    'prompt a string': (dict(prompt='Hi', chosen=[assistant('a')], rejected=[assistant('b')]), 'make the prompt a list too'),
    'answers strings': (dict(prompt=[user('Hi')], chosen='a', rejected='b'), "make 'rejected' a list too"),
    'one answer a string': (dict(chosen=[user('Hi'), assistant('a')], rejected='b'), "make 'rejected' a list too"),
    'from and value': (dict(chosen=[{'from': 'human', 'value': 'a'}], rejected=[{'from': 'human', 'value': 'b'}]), "rename 'from' to 'role'"),
    'strings for messages': (dict(chosen=['Hi', 'a'], rejected=['Hi', 'b']), "message 0 is 'Hi' (str)"),
    'one dict': (dict(chosen=user('a'), rejected=user('b')), '(dict)'),
    'numbers': (dict(chosen=1, rejected=2), '(int)')}


@pytest.mark.parametrize('case', MIXED)
def test_refused_by_kind(case, toy):
    row, says = MIXED[case]
    for d in (Dataset.from_list([row]), Dataset.from_list([row]).to_iterable_dataset()):
        with pytest.raises(ValueError) as e: list(prepare_dataset(d, toy))
        assert str(e.value).startswith('row 0 of the train dataset') and says in str(e.value), e.value


def test_refused_in_another_process(toy):
    d = Dataset.from_list([TEXT]*20 + [dict(TEXT, chosen='')])
    with pytest.raises(ValueError, match="row 20 of the train dataset: column 'chosen' is empty") as e: prepare_dataset(d, toy, num_proc=2)
    assert e.value.__cause__ is None and 'Traceback' not in str(e.value)


def test_refused_as_a_whole(toy):
    def refused(rows, says, error=ValueError, tokenizer=toy, **kw):
        d = Dataset.from_list(rows) if isinstance(rows, list) else rows
        with pytest.raises(error) as e: prepare_dataset(d, tokenizer, **kw)
        assert says in str(e.value), e.value
    refused([dict(prompt='a', chosen='b')], "no column 'rejected', only ['prompt', 'chosen']")
    refused([dict(text='a')], "no column 'chosen' and no column 'rejected'")
    refused([dict(TALK, images=[1])], 'images')
    refused(Dataset.from_dict(dict(prompt=[], chosen=[], rejected=[])), 'has no rows')
    refused(Dataset.from_list([TEXT]).to_iterable_dataset().filter(lambda r: False), 'has no rows')
    refused(dict(train=1), 'is a dict', TypeError)
    refused([TEXT], "truncation_mode='middle'", truncation_mode='middle')
    refused([TEXT]*3, 'all 3 rows of the eval dataset have prompts of max_length=2 tokens or more', max_length=2, name='eval')
    refused([dict(TEXT, rejected=TEXT['chosen'])]*2, 'all 2 rows of the train dataset have the same tokens')
    bare = copy.deepcopy(toy)
    bare.chat_template = bare.eos_token = None
    refused([TALK], 'no chat template', tokenizer=bare)
    refused([TEXT], 'no eos_token', tokenizer=bare)
    raises = copy.deepcopy(toy)
    raises.chat_template = "{{ raise_exception('turns must alternate') }}"
    refused([TALK], 'row 0 of the train dataset: TemplateError in the chat template or the tokenizer: turns must alternate', tokenizer=raises)


# --- the prompt in another column ----------------------------------------------------------------------------------------------------

def metadata(rng, i):
    "Columns of strings that are no prompt."
    return dict(id=f'hm-{i:03d}', source=rng.choice(['evol instruct v2, the filtered part', 'sharegpt']), topic=rng.choice(['cooking', 'home and garden', 'how to write a letter']),
                flaw=rng.choice(['wrong', 'ignores the question', 'gives unsafe advice to the reader']), url=f'https://example.org/a/{i}', hash=f'{rng.getrandbits(64):x}',
                chosen_model=rng.choice(['llama', 'a model of seven billion weights']), prompt_id=f'{rng.getrandbits(64):x}', created=f'2025-01-{i % 28 + 1:02d} 12:{i % 60:02d}:00',
                critique=f'Answer {i} is better because it says what was asked for.', annotator=f'Person {i}', language='English', category='open question answering task', n_turns=3)


@pytest.mark.parametrize('seed', range(10))
def test_metadata_raises_no_alarm(seed):
    rng = random.Random(seed)
    for implicit in (plain_rows(rng, 64, True), chat_rows(rng, 64, True, None), list(load_helpful_mini('implicit')['train'])):
        assert unread_prompt([r | {k: v for k, v in metadata(rng, i).items() if rng.random() < .8} for i, r in enumerate(implicit)]) is None


@pytest.mark.parametrize('name', ['question', 'Question', 'instruction', 'query', 'input', 'problem', 'user_prompt', 'Prompt', 'what_they_wanted', 'text', 'title'])
@pytest.mark.parametrize('kind', ['dataset', 'stream'])
def test_prompt_in_another_column_is_found(name, kind, toy):
    rng = random.Random(0)
    pairs = load_toy_pairs()['train'].shuffle(seed=0).select(range(64))
    rows = [metadata(rng, i) | {name: r['prompt'][0]['content'], 'chosen': 'I think '+r['chosen'][0]['content'], 'rejected': 'I think '+r['rejected'][0]['content']} for i, r in enumerate(pairs)]
    d = Dataset.from_list(rows)
    with pytest.raises(ValueError, match=f"nothing would read its column '{name}'"): prepare_dataset(d if kind == 'dataset' else d.to_iterable_dataset(), toy)


def test_question_beside_conversations(toy):
    answers = [dict(question=r['prompt'][0]['content'], chosen=[user('Go on.'), *r['chosen']], rejected=[user('Go on.'), *r['rejected']]) for r in load_toy_pairs()['train'].select(range(8))]
    with pytest.raises(ValueError, match="rename_column\\('question', 'prompt'\\)"): prepare_dataset(Dataset.from_list(answers), toy)
    whole = [dict(messages=r['prompt']+r['chosen'], question=r['prompt'][0]['content'], chosen=r['prompt']+r['chosen'], rejected=r['prompt']+r['rejected']) for r in load_toy_pairs()['train'].select(range(8))]
    assert len(prepare_dataset(Dataset.from_list(whole), toy)) == 8       # the question is in the messages, so it is read


# --- what is told --------------------------------------------------------------------------------------------------------------------

def test_reports(toy, caplog):
    rows = [dict(prompt='Say it. ', chosen='I loved it.', rejected='No.')]*3 + [dict(prompt='Say it.', chosen=' Yes.', rejected=' Yes.'), dict(prompt='Say it.', chosen=' Yes. '*30, rejected=' No.'), dict(prompt='Say '*40, chosen=' Yes.', rejected=' No.')]
    with caplog.at_level('WARNING', LOG): d = prepare_dataset(Dataset.from_list(rows), toy, max_length=30, name='mine')
    moved, same_, cut = [r.getMessage() for r in caplog.records]
    assert moved.startswith('mine: in 3 of 6 rows the prompt') and "First in row 0: the prompt ends" in moved and "chosen begins ' I loved it" in moved and moved.endswith("goes on ' '")
    assert same_.startswith('mine: in 1 of 6 rows chosen and rejected are the same')
    assert cut == ('mine: max_length=30 (keep_start) leaves 4 of 6 pairs whole: 1 chosen and 0 rejected answers lose their end (1 pairs on one side only); '
                   'in 1 pairs only one side keeps its end-of-sequence token, so they also teach when to stop; 1 pairs are dropped, because their prompt alone fills it')
    assert len(d) == 5 and set(d.column_names) == {'prompt', 'chosen', 'rejected', *token_columns}


def test_reports_of_conversations(toy, caplog):
    deaf = copy.deepcopy(toy)
    deaf.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    long = dict(TALK, chosen=TALK['chosen']+[user('Why?'), assistant('Because.')], tools=json.dumps([SCHEMA]))
    with caplog.at_level('WARNING', LOG): prepare_dataset(Dataset.from_list([dict(TALK, tools=None), long]), deaf)
    said = ' '.join(r.getMessage() for r in caplog.records)
    assert 'in 1 of 2 rows an answer holds turns of a user' in said and 'in 1 of 2 rows there are tools, but the chat template has no place for them. First in row 1' in said


def test_silence(toy, capfd, caplog):
    d = load_toy_pairs()['train'].select(range(50))
    with caplog.at_level('WARNING'):
        prepare_dataset(d, toy, max_length=1024)
        prepare_dataset(d, toy, max_length=1024, num_proc=2)
    out = capfd.readouterr()
    assert not caplog.records and out.out == out.err == ''


def test_stream_tells_once(toy, caplog):
    rows = [dict(prompt='Say it. ', chosen='I loved it.', rejected='No.')]*5 + [dict(prompt='Say '*40, chosen=' Yes.', rejected=' No.')]*5 + [dict(prompt='Say', chosen=' it.', rejected=' it'*40)]*2
    with caplog.at_level('WARNING', LOG): kept = list(prepare_dataset(Dataset.from_list(rows).to_iterable_dataset(), toy, max_length=30))
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 3 and 'in some rows of this stream the prompt' in said[0] and 'pairs whose prompt alone fills it' in said[1] and 'cut on one side only' in said[2]
    assert len(kept) == 7 and set(kept[0]) == {'prompt', 'chosen', 'rejected', *token_columns}


def test_stream_without_known_columns(toy):
    d = IterableDataset.from_generator(lambda: iter([dict(TALK), dict(TALK, chosen=[])]))
    stream = iter(prepare_dataset(d, toy))
    assert toy.decode(next(stream)['chosen_ids']).startswith('It is blue.')       # the good row comes before the bad one is seen
    with pytest.raises(ValueError, match='row 1 of the train dataset'): next(stream)


# --- tokenized already, cached, in several processes -----------------------------------------------------------------------------------

def test_tokenized_passes_through(toy, monkeypatch):
    done = prepare_dataset(load_toy_pairs()['train'].select(range(20)), toy, max_length=64)
    for f in ('prepare_row', 'prepare_rows'): monkeypatch.setattr(truncate_module, f, lambda *a: pytest.fail('tokenized again'))
    assert prepare_dataset(done, toy, max_length=64) is done
    assert list(prepare_dataset(done.to_iterable_dataset(), toy, max_length=64)) == list(done)
    bare = Dataset.from_list([dict(prompt_ids=[1]*n, chosen_ids=[2], rejected_ids=[3], ref_chosen_logps=-1., ref_rejected_logps=-2.) for n in (3, 9, 4)])
    assert prepare_dataset(bare, toy, max_length=5).to_list() == [bare[0], bare[2]]


def test_cache(toy, tmp_path, monkeypatch, caplog):
    load_toy_pairs()['train'].select(range(40)).to_json(tmp_path/'rows.jsonl')
    load = lambda: load_dataset('json', data_files=str(tmp_path/'rows.jsonl'), cache_dir=str(tmp_path/'cache'), split='train')
    calls = []
    real = truncate_module.prepare_rows
    monkeypatch.setattr(truncate_module, 'prepare_rows', lambda rows, *a: calls.extend(rows) or real(rows, *a))
    with caplog.at_level('WARNING'): first = prepare_dataset(load(), toy, max_length=64)
    assert len(calls) == 40 and not any('hash' in r.getMessage() for r in caplog.records)
    toy(['a', 'b c'], padding=True)                                                       # a used tokenizer is the same tokenizer
    for tokenizer, limit in ((toy, 64), (load_toy_tokenizer(), 64), (toy, 40)): again = prepare_dataset(load(), tokenizer, max_length=limit)
    assert len(calls) == 40 and again.cache_files == first.cache_files
    monkeypatch.setattr(truncate_module.inspect, 'getsource', lambda f: 'another version')
    prepare_dataset(load(), toy, max_length=64)
    assert len(calls) == 80


@pytest.mark.parametrize('implicit', [False, True], ids=['explicit', 'implicit'])
@pytest.mark.parametrize('kind', ['plain', 'chat', 'json', 'list', 'kwargs'])
@both_tokenizers
def test_together_or_one_by_one(tokenizer, kind, implicit):
    "Many rows tokenized in one call have the ids that each has by itself, texts and conversations mixed."
    rng = random.Random(f'{kind}{implicit}')
    rows = plain_rows(rng, 40, implicit) if kind == 'plain' else [*chat_rows(rng, 40, implicit, kind), TEXT]
    rng.shuffle(rows)
    assert prepare_rows(rows, tokenizer, ['']*len(rows)) == [prepare_row(r, tokenizer) for r in rows]


@pytest.mark.parametrize('first', ['gpt2', 'bos'])
def test_special_tokens_of_the_tokenizer(first, gpt2):
    "What a tokenizer adds by itself goes to plain text, and not to what a template prints."
    tok = copy.deepcopy(gpt2)
    if first == 'bos':
        from tokenizers.processors import TemplateProcessing
        tok.backend_tokenizer.post_processor = TemplateProcessing(single='<|im_start|> $A', special_tokens=[('<|im_start|>', tok.convert_tokens_to_ids('<|im_start|>'))])
    rows = [TEXT, TALK, TEXT]
    assert prepare_rows(rows, tok, ['']*3) == [prepare_row(r, tok) for r in rows]


def metaspace(gpt2):
    "A tokenizer that marks spaces, and the first word of a text as well."
    tok = copy.deepcopy(gpt2)
    tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first')
    return tok


def overlapping(gpt2):
    "Special tokens that begin alike, contain each other, or take in the space behind them."
    tok = copy.deepcopy(gpt2)
    tok.add_tokens([AddedToken(t, normalized=False, rstrip=t.startswith('<r')) for t in ('<|im_start|>user', 'x<|im_end|>', '<|', '<r>', '<|im')])
    return tok


@pytest.mark.parametrize('kind', [copy.deepcopy, metaspace, overlapping], ids=['bytes', 'metaspace', 'overlapping'])
def test_shared_beginnings_are_tokenized_once(kind, gpt2, monkeypatch):
    "Cut in front of any special token, also one that stands in a message, the ids are those of the whole text; and less is tokenized."
    tok, rng = kind(gpt2), random.Random(0)
    bits = ['a', ' x', '<|im_end|>', '<|im_start|>', '<|', '|>', '<r>', '  ', '\n', 'user', '<|im', 'é', ' word']
    def text(n): return ''.join(rng.choice(bits) for _ in range(n))
    rows = [[(p := text(20))+text(rng.randrange(2)), p+text(9), p+text(9)] for _ in range(300)]
    assert sum(shared_head(r, special_pattern(tok)) > 0 for r in rows) > 200
    whole = encode_plain(rows, tok, special=False)
    for i in range(0, len(rows), 50):
        seen, real = [], tok._encode_plus
        with monkeypatch.context() as m:
            m.setattr(tok, '_encode_plus', lambda text, *a, **k: seen.append(text) or real(text, *a, **k))
            assert encode_chats(rows[i:i+50], tok) == whole[i:i+50]
        assert len(seen) == 2 and len(seen[1]) == 3                                      # the trial of the first row agreed
        assert sum(map(len, seen[0])) < sum(map(len, sum(rows[i:i+50], [])))


def test_a_tokenizer_that_cannot_be_cut_is_not(gpt2):
    "A special token that takes in what stands in front of it; and one whose ids depend on what stood before it, found by the trial."
    tok = copy.deepcopy(gpt2)
    tok.add_tokens([AddedToken('<l>', normalized=False, lstrip=True)])
    assert special_pattern(tok) is None
    rows = [['<|im_start|>a', '<|im_start|>a b', '<|im_start|>a c']]*3
    class Counts:
        "Its first token's id depends on the length of the text."
        backend_tokenizer = gpt2.backend_tokenizer
        def __call__(self, texts, **kw): return dict(input_ids=[[len(t), *ids] for t, ids in zip(texts, gpt2(texts, **kw)['input_ids'])])
    assert encode_chats(rows, Counts()) == encode_plain(rows, Counts(), special=False)


def test_processes_agree(toy):
    d = load_helpful_mini()['train'].select(range(30))
    same(prepare_dataset(d, toy, num_proc=3), prepare_dataset(d, toy))
    assert len(prepare_dataset(d.select(range(2)), toy, num_proc=8)) == 2


def test_picked_rows(toy):
    "Row numbers are those of the dataset that was passed, and the counts see what was picked."
    d = load_toy_pairs()['train'].select(range(30)).shuffle(seed=1).filter(lambda r: True).select([5, 3, 9])
    done = prepare_dataset(d, toy)
    assert [toy.decode(r['chosen_ids']) for r in done] == [r['chosen'][0]['content']+toy.eos_token+'\n' for r in d]
    assert pair_lengths(done.select([2, 0])).tolist() == [pair_lengths(done)[i].tolist() for i in (2, 0)]


def test_describe_on_everything(toy, gpt2):
    for tok in (toy, gpt2):
        for d in (load_toy_pairs()['train'], load_helpful_mini('implicit')['test'], load_helpful_mini()['train'].to_iterable_dataset(), [TEXT]):
            text = describe(d, tok)
            assert text.splitlines()[0].split(',')[0] in ('conversational', 'plain text') and '── chosen ──' in text
