"The toy world: its assets are reproducible, small, consistent, and load without network or writing."
import hashlib, json, os, random, subprocess, sys
from pathlib import Path

import pytest
import torch

import dpo_nb
from dpo_nb import toy

ROOT = Path(__file__).resolve().parents[1]
ASSETS = Path(dpo_nb.__file__).parent/'assets'
SCRIPT = ROOT/'scripts'/'make_toy_world.py'


def run(*args, **env):
    "Run python in a fresh process; return what it printed."
    p = subprocess.run([sys.executable, *map(str, args)], env={**os.environ, **env}, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr[-3000:]
    return p.stdout


def digest(folder):
    "SHA-256 of each file of a folder."
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


@pytest.fixture(scope='module')
def script():
    "The script as a module."
    import importlib.util
    spec = importlib.util.spec_from_file_location('make_toy_world', SCRIPT)
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod


def test_script_is_deterministic(tmp_path):
    for name in ('a', 'b'): run(SCRIPT, '--out', tmp_path/name, '--steps', 3, '--train', 0, '--test', 0)
    a, b = digest(tmp_path/'a'), digest(tmp_path/'b')
    assert {'model/model.safetensors', 'model/config.json', 'model/tokenizer.json'} <= set(a)
    assert a == b


def test_tokenizer_is_the_scripts(script):
    "The stored tokenizer is the one that the grammar of today gives."
    new, old = script.make_tokenizer(), toy.load_toy_tokenizer()
    assert new.get_vocab() == old.get_vocab() and new.chat_template == old.chat_template


def test_pairs_are_deterministic_and_noise_is_exact(script):
    model, tok = toy.load_toy_model(), toy.load_toy_tokenizer()
    a, b = (script.make_pairs(model, tok, 'test', 40, .25, seed=9) for _ in range(2))
    assert a == b and sum(r['flipped'] for r in a) == 10


def test_untrained_model_says_so(script):
    from transformers import LlamaForCausalLM
    torch.manual_seed(0)
    model, tok = toy.load_toy_model(), toy.load_toy_tokenizer()
    with pytest.raises(RuntimeError, match='train it for more steps'): script.make_pairs(LlamaForCausalLM(model.config).eval(), tok, 'test', 10**6, 0., seed=0, rounds=1)


def test_assets_are_small():
    size = sum(p.stat().st_size for p in ASSETS.rglob('*') if p.is_file())
    assert size <= 5e6, f'{size/1e6:.2f} MB'
    assert sum(p.stat().st_size for p in (ASSETS/'tiny_reviews').rglob('*') if p.is_file()) <= 4.3e6


def test_loaders_need_no_network_and_write_nothing(tmp_path):
    "With sockets forbidden and an empty cache, everything loads; neither cache nor package changes."
    before = digest(ASSETS)
    code = '''
import socket
def no(*a, **k): raise OSError("network used")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = no
import dpo_nb
m, t, p, h = dpo_nb.load_toy_model(), dpo_nb.load_toy_tokenizer(), dpo_nb.load_toy_pairs(), dpo_nb.load_helpful_mini()
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from datasets import DatasetDict
assert isinstance(m, PreTrainedModel) and isinstance(t, PreTrainedTokenizerFast) and isinstance(p, DatasetDict) and isinstance(h, DatasetDict)
'''
    env = {k: '' for k in ('HF_HUB_OFFLINE', 'HF_DATASETS_OFFLINE', 'TRANSFORMERS_OFFLINE')}
    run('-c', code, HF_HOME=str(tmp_path/'home'), XDG_CACHE_HOME=str(tmp_path/'home'), PYTHONDONTWRITEBYTECODE='1', **env)
    assert not [p for p in (tmp_path/'home').rglob('*') if p.is_file()]
    assert digest(ASSETS) == before


def test_labels_noise_and_split():
    ds = toy.load_toy_pairs()
    assert set(ds['train'].column_names) == {'prompt', 'chosen', 'rejected', 'reward_chosen', 'reward_rejected', 'flipped'}
    assert abs(sum(ds['train']['flipped'])/len(ds['train']) - .1) <= .01 and not any(ds['test']['flipped'])
    for split in ds.values():
        for r in split:
            c, j = (toy.review_reward(r[k][0]['content']) for k in ('chosen', 'rejected'))
            assert abs(c-r['reward_chosen']) < 1e-4 and abs(j-r['reward_rejected']) < 1e-4
            assert c != j and (c < j) == r['flipped']
    prompts = {s: {r['prompt'][0]['content'] for r in ds[s]} for s in ds}
    held = {s for k in toy.kinds.values() for s in k['subjects'][-3:]}
    assert all(any(s in p for s in held) for p in prompts['test']) and not any(s in p for s in held for p in prompts['train'])


def test_no_trivial_cue_in_the_pairs():
    "Length alone must not tell chosen from rejected."
    ds = toy.load_toy_pairs()['train']
    longer = [len(r['chosen'][0]['content']) > len(r['rejected'][0]['content']) for r in ds]
    assert .4 < sum(longer)/len(longer) < .6


def test_reward_is_bounded_on_any_text():
    rng = random.Random(0)
    words = [*toy.lexicon, 'not', 'the', '…', 'é', '\n', '<|im_end|>', "isn't", '42', '.']
    for _ in range(500):
        t = ' '.join(rng.choices(words, k=rng.randrange(30)))
        assert -1 <= toy.review_reward(t) <= 1
        assert toy.review_reward(t.upper()) == toy.review_reward(t)
        toy.follows_grammar(t)


def test_grammar_accepts_itself_and_opinions_match_the_mood():
    rng = random.Random(1)
    for k in toy.kinds.values():
        for s in k['subjects']:
            for _ in range(5): assert toy.follows_grammar(toy.write_review(s, rng))


@pytest.mark.parametrize('which', ['toy', 'helpful'])
def test_rendered_prompt_is_a_prefix(which):
    tok = toy.load_toy_tokenizer()
    rows = toy.load_toy_pairs()['test'].select(range(50)) if which == 'toy' else toy.load_helpful_mini()['test']
    for r in rows:
        tools = json.loads(r['tools']) if r.get('tools') else None
        show = lambda m, **k: tok.apply_chat_template(m, tools=tools, tokenize=False, **k)
        for side in ('chosen', 'rejected'):
            p, full = show(r['prompt'], add_generation_prompt=True), show(r['prompt']+r[side])
            assert full.startswith(p)
            a, b = tok(p)['input_ids'], tok(full)['input_ids']
            assert b[:len(a)] == a and tok.decode(b) == full


def test_sampling_does_not_depend_on_the_callers_state():
    model, tok = toy.load_toy_model(), toy.load_toy_tokenizer()
    ps = toy.toy_prompts('test')[:4]
    a = toy.sample_reviews(model, tok, ps, n=2, max_new_tokens=12)
    torch.manual_seed(123); torch.rand(5)
    tok.padding_side = 'right'
    b = toy.sample_reviews(model.train(), tok, ps, n=2, max_new_tokens=12)
    assert a == b and model.training and tok.padding_side == 'right'
    assert len(a) == 8


@pytest.mark.parametrize('seed', range(3))
def test_enumerated_policies_share_prefixes(seed):
    "Two responses with the same first tokens give them the same log-probs, whatever follows."
    w = toy.EnumWorld(n_prompts=2, letters='ab', max_len=4, seed=seed)
    lp = w.ref.per_token_logps()
    for i, a in enumerate(w.tokens):
        for j, b in enumerate(w.tokens):
            n = int((a == b).long().cumprod(0).sum())
            n = min(n, int(w.lengths[i]), int(w.lengths[j]))
            assert torch.equal(lp[:, i, :n], lp[:, j, :n])
    assert len(set(w.texts)) == len(w.texts) == w.ref_logps.shape[1]


def test_missing_assets_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(toy, 'files', lambda name: tmp_path)
    for load, name in ((toy.load_toy_pairs, 'tiny_reviews/train.jsonl.gz'), (toy.load_helpful_mini, 'helpful_mini/train.jsonl')):
        with pytest.raises(FileNotFoundError, match=name): load()
