"The hand-written preference pairs of dpo_nb/assets/helpful_mini keep what their data card promises."
import json
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1]/'dpo_nb'/'assets'/'helpful_mini'
FIELDS = ['id', 'layout', 'topic', 'flaw', 'prompt', 'chosen', 'rejected', 'tools']
LAYOUTS = {'train': dict(single=100, multi_turn=35, tools=20, implicit=25), 'test': dict(single=20, multi_turn=7, tools=4, implicit=5)}
FLAWS = {'train': dict(wrong=47, rude=18, rambling=24, ignores_question=27, unsafe=17, bad_format=24, sycophantic=10, incomplete=13),
         'test': dict(wrong=10, rude=4, rambling=4, ignores_question=6, unsafe=4, bad_format=4, sycophantic=2, incomplete=2)}
CHATML = """{% if tools %}<|im_start|>system
{% for t in tools %}{{ t | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% if m.tool_calls %}{% for c in m.tool_calls %}
<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}}</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def read(split): return [json.loads(line) for line in (FOLDER/f'{split}.jsonl').read_text(encoding='utf-8').splitlines()]


SPLITS = {s: read(s) for s in ('train', 'test')}
ROWS = SPLITS['train'] + SPLITS['test']


def prompt(r): return r['chosen'][:-1] if r['prompt'] is None else r['prompt']
def calls(m): return m.get('tool_calls') or []
def size(messages): return len(messages[-1]['content']) + sum(len(c['function']['name'])+len(c['function']['arguments']) for c in calls(messages[-1]))
def longer(rows): return sum(size(r['chosen']) > size(r['rejected']) for r in rows)
def turns(r): return sum(m['role'] == 'user' for m in prompt(r))
def bare(messages): return messages and [{k: v for k, v in m.items() if v is not None} for m in messages]


@pytest.mark.parametrize('split,n', [('train', 180), ('test', 36)])
def test_counts(split, n):
    rows = SPLITS[split]
    assert len(rows) == n
    assert Counter(r['layout'] for r in rows) == LAYOUTS[split]
    assert Counter(r['flaw'] for r in rows) == FLAWS[split]


def test_the_whole_is_large_and_mixed_enough():
    n = Counter(r['layout'] for r in ROWS)
    assert len(ROWS) >= 200 and n['multi_turn'] >= 30 and n['tools'] >= 16 and n['implicit'] >= 20
    assert sum(turns(r) >= 3 for r in ROWS) >= 8
    assert len({r['topic'] for r in ROWS}) >= 20 and len({r['topic'] for r in SPLITS['test']}) >= 15
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 400_000


def test_rows_are_well_formed():
    assert [r['id'] for r in ROWS] == [f'hm-{i:03d}' for i in range(1, len(ROWS)+1)]
    for r in ROWS:
        assert list(r) == FIELDS
        assert (r['prompt'] is None) == (r['layout'] == 'implicit') and (r['tools'] is not None) == (r['layout'] == 'tools')
        if r['prompt'] is None: assert r['chosen'][:-1] == r['rejected'][:-1] and len(r['chosen']) >= 2
        else: assert len(r['chosen']) == len(r['rejected']) == 1
        if r['layout'] == 'multi_turn': assert turns(r) >= 2
        if r['layout'] == 'single': assert turns(r) == 1
        roles = [m['role'] for m in prompt(r)]
        assert roles[-1] in ('user', 'tool') and 'system' not in roles[1:]
        for answer in (r['chosen'][-1], r['rejected'][-1]): assert answer['role'] == 'assistant'
        assert r['chosen'][-1] != r['rejected'][-1]
        for m in prompt(r) + [r['chosen'][-1], r['rejected'][-1]]:
            assert set(m) <= {'role', 'content', 'tool_calls'} and isinstance(m['content'], str) and '\r' not in m['content']
            assert m['content'].strip() or calls(m), f"{r['id']}: empty message"


def test_nothing_occurs_twice():
    prompts = [json.dumps(prompt(r)) for r in ROWS]
    assert len(set(prompts)) == len(ROWS)
    assert not {json.dumps(prompt(r)[-1]) for r in SPLITS['train']} & {json.dumps(prompt(r)[-1]) for r in SPLITS['test']}
    answers = [r[c][-1]['content'] for r in ROWS for c in ('chosen', 'rejected') if r[c][-1]['content']]
    assert len(set(answers)) == len(answers)


def test_calls_fit_their_schemas():
    for r in ROWS:
        if r['tools'] is None:
            assert not any(calls(m) for c in ('prompt', 'chosen', 'rejected') for m in r[c] or [])
            continue
        schemas = {t['function']['name']: t['function']['parameters'] for t in json.loads(r['tools'])}
        for m in prompt(r) + r['chosen'] + r['rejected']:
            for call in calls(m):
                given = json.loads(call['function']['arguments'])
                schema = schemas[call['function']['name']]
                assert set(schema['required']) <= set(given) <= set(schema['properties'])
    for split in SPLITS.values():  # every place a call may stand in occurs in both files
        assert all(any(calls(m) for r in split for m in r[c] or []) for c in ('prompt', 'chosen', 'rejected'))


@pytest.mark.parametrize('rows', [ROWS, *SPLITS.values()], ids=['all', 'train', 'test'])
def test_length_does_not_give_the_label_away(rows):
    assert 0.45 <= longer(rows)/len(rows) <= 0.55
    chosen, rejected = (sum(size(r[c]) for r in rows) for c in ('chosen', 'rejected'))
    assert abs(chosen/rejected - 1) < 0.05


@pytest.mark.parametrize('sign', ['!', '?', ';', ':', ',', '\n', '`', '"', "'"])
def test_no_single_mark_gives_the_label_away(sign):
    gaps = [r['chosen'][-1]['content'].count(sign) - r['rejected'][-1]['content'].count(sign) for r in ROWS]
    best = max(sum(g > 0 for g in gaps), sum(g < 0 for g in gaps)) + sum(g == 0 for g in gaps)/2  # ties guessed by a coin
    assert best/len(ROWS) < 0.6


def test_datasets_reads_both_files(tmp_path):
    from datasets import load_dataset
    d = load_dataset('json', data_files={s: str(FOLDER/f'{s}.jsonl') for s in SPLITS}, cache_dir=str(tmp_path))
    assert d['train'].features == d['test'].features
    for split, rows in SPLITS.items():
        for got, want in zip(d[split], rows, strict=True):
            assert all(bare(got[c]) == want[c] for c in ('prompt', 'chosen', 'rejected'))
            assert all(got[c] == want[c] for c in ('id', 'layout', 'topic', 'flaw', 'tools'))


def test_a_chatml_template_renders_every_row():
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    tok = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=CHATML)
    shown = Counter()
    for r in [*ROWS, *Dataset.from_list(ROWS)]:  # as written, and as Arrow fills it (tool_calls: None)
        tools = json.loads(r['tools']) if r['tools'] else None
        start = tok.apply_chat_template(prompt(r), tools=tools, tokenize=False, add_generation_prompt=True)
        full = [tok.apply_chat_template(prompt(r)+[r[c][-1]], tools=tools, tokenize=False) for c in ('chosen', 'rejected')]
        assert full[0] != full[1] and all(text.startswith(start) for text in full), r['id']
        for text in full:
            for call in text.split('<tool_call>')[1:]: json.loads(call.split('</tool_call>')[0])
            shown['calls'] += text.count('<tool_call>')
    assert shown['calls'] > 0


def test_the_card_states_the_true_counts():
    card = (FOLDER/'README.md').read_text(encoding='utf-8')
    for column, table in (('layout', LAYOUTS), ('flaw', FLAWS)):
        for kind, n in table['train'].items():
            rows = [r for r in ROWS if r[column] == kind]
            assert f"| {kind} | {n} | {table['test'][kind]} | {longer(rows)}/{len(rows)} |" in card
    for topic, n in Counter(r['topic'] for r in ROWS).items(): assert f'{topic} {n}' in card
    assert f"{longer(SPLITS['train'])} of 180 train rows and {longer(SPLITS['test'])} of 36 test rows" in card
    assert 'Apache-2.0' in card
