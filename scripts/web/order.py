"Where a page stands: its group in nbs/sidebar.yml, its place there, and how long it takes to read."
import math, re
from functools import cache

import yaml

from project import ROOT, directives
from web.folds import kind_of

WORDS_A_MINUTE, LINES_A_MINUTE = 220, 20


@cache
def groups():
    "The pages of each group, by path, in reading order."
    contents = yaml.safe_load((ROOT/'nbs'/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    return {part['section']: part['contents'] for part in contents if isinstance(part, dict)}


def place(name):
    "Group, place and number of pages of the page `name`; None for a page without a group."
    for group, names in groups().items():
        if name in names: return group, names.index(name) + 1, len(names)


def shown_lines(cell):
    "Lines of a code cell that a reader sees without opening anything."
    said, code = directives(cell.source)
    hidden = {'hide', 'export'} & set(said) or said.get('echo') == 'false' or said.get('include') == 'false' or kind_of(cell)
    return 0 if hidden else sum(bool(line.strip()) for line in code.splitlines())


def minutes(cells):
    "Reading time: prose at 220 words a minute, three seconds a line of open code; what is folded is not counted."
    words = lines = 0
    inside = False  # a folded solution
    for cell in cells:
        if cell.cell_type == 'code':
            lines += 0 if inside else shown_lines(cell)
        elif cell.cell_type == 'markdown':
            text = re.sub(r'\$\$.*?\$\$|\$[^$]*\$', ' x ', cell.source, flags=re.S)
            for part in re.split(r'(?m)^(:::.*)$', text):
                if part.startswith(':::'): inside = '{' in part and 'collapse="true"' in part
                elif not inside: words += len(re.findall(r'\w+', re.sub(r'\]\([^)]*\)', ']', part)))
    return max(1, math.ceil(words/WORDS_A_MINUTE + lines/LINES_A_MINUTE))
