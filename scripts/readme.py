#!/usr/bin/env python
"""Write README.md from nbs/index.ipynb, as saved: Markdown verbatim, code fenced, text outputs fenced, pictures as files.

    python scripts/readme.py           # write README.md and nbs/images/readme_*.png
    python scripts/readme.py --check   # exit 1 if they are not what the notebook gives

Links to pages and names in backticks become links into the published site, whose address comes from settings.ini.
"""
import argparse, base64, json, re, sys
from pathlib import Path

from project import ROOT, colab_url, directives, doc_url, fill, modidx, page_url, settings

IMAGES = 'nbs/images'
FENCE = re.compile(r'(?ms)(^```.*?^```$)')


def badges(cfg):
    "Tests, site, Colab, licence; only what the repository's host can show."
    colab, workflow = colab_url(cfg, 'tour.ipynb'), f"{cfg['git_url']}/actions/workflows/test.yaml"
    shown = [f'[documentation]({doc_url(cfg)}/)', '[Apache-2.0](../LICENSE)']
    if colab: shown = [f'[![tests]({workflow}/badge.svg)]({workflow})',
                       f'[![Open the tour in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})', *shown]
    return ' · '.join(shown)


def symbols(root):
    "Exported names and where the site documents them, `losses/sigmoid.html#sigmoid_loss`; a method is where its class is."
    return {full.removeprefix(f'{mod}.'): re.sub(r'(#[^.]*)\..*', r'\1', page)
            for mod, names in modidx(root)['syms'].items() for full, (page, _) in names.items()}


def linked(text, cfg, names):
    "Outside code fences: placeholders filled everywhere, pages and exported names linked to the site, pictures found from the top."
    def target(m):
        path, mark, anchor = m[2].partition('#')
        if '://' in path or not path: return m[0]
        if path.endswith('.ipynb'): return f'{m[1]}({page_url(cfg, path)}{mark}{anchor})'
        return f'{m[1]}({path[3:] if path.startswith("../") else "nbs/"+path}{mark}{anchor})'
    def name(m): return f'[{m[0]}]({doc_url(cfg)}/{names[m[1]]})' if m[1] in names else m[0]
    parts = FENCE.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r'(!?\[(?:[^\]\[]|\[[^\]]*\])*\])\(([^)\s]+)\)', target, parts[i])
        parts[i] = re.sub(r'(?<!\[)`([A-Za-z_][\w.]*)(?:\(\))?`(?!\])', name, parts[i])
    return fill(''.join(parts), cfg)


def output(o, options, images):
    "One saved output as Markdown; a picture goes into `images`, by path."
    data = o.get('data', {})
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    if 'image/png' in data:
        path = f'{IMAGES}/readme_{len(images)+1}.png'
        images[path] = base64.b64decode(''.join(data['image/png']))
        caption = options.get('fig-cap', '')
        return f"![{options.get('fig-alt', caption)}](../{path})" + f'\n\n*{caption}*'*bool(caption)
    text = ''.join(o.get('text') or data.get('text/plain', ''))
    return f'```text\n{text.rstrip()}\n```' if text.strip() else ''


def readme(root=ROOT):
    "The text of README.md and the pictures it shows, by path."
    cfg, names, images, parts = settings(root), symbols(root), {}, []
    cells = json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']
    for cell in cells:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown': parts.append(re.sub(r'(?m)^:::.*\n?', '', source))  # the site's boxes
        elif cell['cell_type'] == 'code':
            options, code = directives(source)
            if 'hide' in options or options.get('include') == 'false': continue
            if code and options.get('echo') != 'false': parts.append(f'```python\n{code}\n```')
            if options.get('output') != 'false': parts += [output(o, options, images) for o in cell['outputs']]
        if len(parts) == 1: parts.append(badges(cfg))
    note = '<!-- Made from nbs/index.ipynb by scripts/readme.py: edit the notebook, then `make readme`. -->'
    return note + '\n\n' + '\n\n'.join(linked(p.strip(), cfg, names) for p in parts if p.strip()) + '\n', images


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--check', action='store_true')
    check = ap.parse_args().check
    text, images = readme()
    wanted = {ROOT/'README.md': text.encode(), **{ROOT/p: data for p, data in images.items()}}
    old = set((ROOT/IMAGES).glob('readme_*.png')) - set(wanted)
    stale = [p for p, data in wanted.items() if not p.exists() or p.read_bytes() != data] + sorted(old)
    if check: sys.exit('\n'.join(f'{p.relative_to(ROOT)} is not what nbs/index.ipynb gives: run `make readme`' for p in stale) or 0)
    for p in old: p.unlink()
    for p in set(stale) - old:
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(wanted[p])
        print(f'wrote {p.relative_to(ROOT)}')


if __name__ == '__main__': main()
