"The project's public address stands in settings.ini and nowhere else; the generated files follow it."
import sys

from conftest import run
from project import doc_url, modidx, settings

GENERATED = {'README.md', 'dpo_nb/_modidx.py'}  # proved below to change with settings.ini


def spellings(cfg):
    "What only the address contains: host and path of the repository, owner/name, host of the site."
    bare = lambda url: url.partition('://')[2].rstrip('/')
    repository = bare(cfg['git_url'])
    return {repository, repository.partition('/')[2], bare(cfg['doc_host'])}


def places(root, words):
    "Files under `root`, apart from settings.ini, that spell one of `words`."
    files = [p for p in root.rglob('*') if p.is_file() and p != root/'settings.ini' and '__pycache__' not in p.parts]
    return {p.relative_to(root).as_posix() for p in files if any(w.encode() in p.read_bytes() for w in words)}


def test_address_is_spelled_once(checkout):
    assert places(checkout, spellings(settings(checkout))) <= GENERATED


def test_one_edit_and_a_rebuild_move_the_project(checkout):
    old = spellings(settings(checkout))
    ini = (checkout/'settings.ini').read_text(encoding='utf-8')
    lines = [{'git_url': 'git_url = https://code.example.org/group/moved', 'doc_host': 'doc_host = https://pages.example.org'}
             .get(l.partition('=')[0].strip(), l) for l in ini.splitlines()]
    (checkout/'settings.ini').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    run('nbdev_export', cwd=checkout)
    run(sys.executable, 'scripts/readme.py', cwd=checkout)
    assert places(checkout, old) == set()
    text = (checkout/'README.md').read_text(encoding='utf-8')
    assert 'git clone https://code.example.org/group/moved' in text and doc_url(settings(checkout)) + '/' in text
    assert modidx(checkout)['settings']['git_url'] == 'https://code.example.org/group/moved'
