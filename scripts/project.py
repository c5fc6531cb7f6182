"What the scripts and the tests share: the settings, the pages, and every address, all derived from settings.ini."
import os, re, shutil, subprocess
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import urlparse

ROOT = Path(__file__).resolve().parents[1]


def settings(root=ROOT):
    "The `[DEFAULT]` section of settings.ini, with its %(names)s filled in."
    parser = ConfigParser(delimiters=['='])
    parser.read(root/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


def pages(root=ROOT):
    "Every notebook of the site, sorted by path."
    nbs = root/'nbs'
    return sorted(p for p in nbs.rglob('*.ipynb') if not any(q.startswith(('.', '_')) for q in p.relative_to(nbs).parts))


def copy_checkout(dest, *under, root=ROOT):
    "Every file that git tracks or would track, of the folders `under` if any are given, at `dest`; builds, environments and training output stay behind."
    listed = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard', '--', *under], cwd=root, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split('\0')):
        src, dst = root/name, dest/name
        if not os.path.lexists(src): continue  # deleted, not yet committed
        dst.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(src, dst, follow_symlinks=False)
    return dest


def doc_url(cfg):
    "Where the site is published, without a closing slash."
    return (cfg['doc_host'].rstrip('/') + '/' + cfg['doc_baseurl'].strip('/')).rstrip('/')


def page_url(cfg, name):
    "The published address of `losses/sigmoid.ipynb`."
    return f'{doc_url(cfg)}/{str(name).removesuffix(".ipynb")}.html'


def source_url(cfg, path):
    "A file of the repository in the browser; `path` counts from its top."
    return f"{cfg['git_url']}/blob/{cfg['branch']}/{path}"


def colab_url(cfg, name):
    "The page `name` in Colab; None where the repository is not on GitHub."
    url = urlparse(cfg['git_url'])
    if url.netloc != 'github.com': return None
    return f"https://colab.research.google.com/github{url.path}/blob/{cfg['branch']}/nbs/{name}"


def modidx(root=ROOT):
    "nbdev's index of exported names: the page and the module of each."
    space = {}
    exec((root/'dpo_nb'/'_modidx.py').read_text(encoding='utf-8'), space)
    return space['d']


def fill(text, cfg):
    "Fill the placeholders a page may use: {{git_url}}, {{doc_url}}, {{repo}}, {{branch}}."
    values = dict(git_url=cfg['git_url'], doc_url=doc_url(cfg), repo=cfg['repo'], branch=cfg['branch'])
    return re.sub(r'\{\{(\w+)\}\}', lambda m: values.get(m[1], m[0]), text)


def directives(source):
    "A code cell's leading `#|` lines as a dict, and its code without them."
    lines, found = source.splitlines(), {}
    while lines and lines[0].startswith('#|'):
        key, _, value = lines.pop(0)[2:].strip().replace(': ', ' ', 1).partition(' ')
        found[key.rstrip(':')] = value.strip().strip('"')
    return found, '\n'.join(lines).strip('\n')
