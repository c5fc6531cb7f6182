"""Which code a reader need not see at once: imports, set-up, the code of figures, cells that only check.

The notebook stays as it is. On the site such a cell gets quarto's own options `code-fold` and `code-summary`; its output stays open,
and so does every cell that exports, and every one in a solution, which is folded as a whole.
"""
import ast, re
from copy import deepcopy

from project import directives

CHECKS = re.compile(r'test_\w+|expect_fail|assert_\w+')
PLOTS = re.compile(r'\bplt\.|\bfig\b|\baxs?\b')


def parsed(code):
    "The statements of a cell; none where it is not plain Python."
    try: return ast.parse('\n'.join('pass' if line.lstrip().startswith(('%', '!')) else line for line in code.splitlines())).body
    except SyntaxError: return []


def called(node):
    "The name of the function that a statement calls, if that is all it does."
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)): return ''
    f = node.value.func
    return f.id if isinstance(f, ast.Name) else f.attr if isinstance(f, ast.Attribute) else ''


def is_import(node): return isinstance(node, (ast.Import, ast.ImportFrom))


def is_check(node):
    "Does the statement only check?"
    if isinstance(node, ast.Assert) or CHECKS.fullmatch(called(node)): return True
    if isinstance(node, (ast.For, ast.If)): return all(map(is_check, node.body + node.orelse))
    return isinstance(node, ast.With) and any('fail' in ast.unparse(item.context_expr) for item in node.items) and len(node.body) == 1


def is_quiet(node):
    "Set-up that says nothing: a seed, a warning turned off."
    return re.match(r'(warnings|logging|torch\.manual_seed|torch\.set_)', ast.unparse(node)) is not None


def count(nodes):
    "How many checks there are."
    return sum(count(n.body) if isinstance(n, (ast.For, ast.If)) else 1 for n in nodes)


def checks(nodes): return f'{count(nodes)} checks' if count(nodes) > 1 else '1 check'


def kind_of(cell):
    "What the reader is told instead of the code of the cell: `Imports`, `Code of the figure`, `3 checks`; None for a cell that stays open."
    said, code = directives(cell.source)
    if {'export', 'exports', 'hide'} & set(said) or 'code-fold' in said: return None
    nodes = parsed(code)
    if not nodes: return None
    if all(is_import(n) or is_quiet(n) for n in nodes): return 'Imports' if any(map(is_import, nodes)) else 'Set-up'
    draws = any('image/png' in o.get('data', {}) or 'image/svg+xml' in o.get('data', {}) for o in cell.get('outputs', []))
    if draws and PLOTS.search(code): return 'Code of the figure'
    shows = any('text/html' in o.get('data', {}) for o in cell.get('outputs', []))
    if shows and len(code.splitlines()) > 3: return 'Code of the figure'
    if all(is_check(n) or is_import(n) or is_quiet(n) for n in nodes): return checks([n for n in nodes if is_check(n)])


def closing_checks(code):
    "A cell's code without the checks at its end, and those checks; they are two or more, and come after something else."
    nodes = parsed(code)
    first = len(nodes)
    while first and is_check(nodes[first-1]): first -= 1
    if first == 0 or count(nodes[first:]) < 2: return code, '', []
    lines = code.splitlines()
    start = nodes[first].lineno - 1
    if start and nodes[first-1].end_lineno > start: return code, '', []  # on one line with what comes before
    while start and lines[start-1].lstrip().startswith('#'): start -= 1
    return '\n'.join(lines[:start]).rstrip(), '\n'.join(lines[start:]), nodes[first:]


def folded(cell, summary):
    "The cell with its code folded under `summary`."
    cell = deepcopy(cell)
    cell.source = f'#| code-fold: true\n#| code-summary: "{summary}"\n{cell.source}'
    return cell


def fold(cells):
    "The cells of a page with what need not be seen at once folded, and the checks at the end of a cell folded apart from it."
    done, inside = [], False
    for cell in cells:
        if cell.cell_type == 'markdown':
            for line in cell.source.splitlines():
                if line.startswith('::: {.callout') and 'collapse' in line: inside = True
                elif line.strip() == ':::': inside = False
        if cell.cell_type != 'code' or inside:
            done.append(cell)
            continue
        if summary := kind_of(cell):
            done.append(folded(cell, summary))
            continue
        said, code = directives(cell.source)
        rest, closing, nodes = ('', '', []) if {'export', 'exports', 'hide', 'echo', 'code-fold'} & set(said) else closing_checks(code)
        if not nodes:
            done.append(cell)
            continue
        head = cell.source[:len(cell.source) - len(code)] if cell.source.endswith(code) else ''
        first, second = deepcopy(cell), deepcopy(cell)
        first.source, second.source, second['outputs'] = head + rest, closing, []
        second['id'] = f'{cell.get("id", "cell")}-checks'
        done += [first, folded(second, checks(nodes))]
    return done


def glance_later(cells):
    "The table At a glance after the section that follows it: the problem first."
    level2 = [i for i, c in enumerate(cells) if c.cell_type == 'markdown' and c.source.startswith('## ')]
    for at, following, after in zip(level2, level2[1:], level2[2:]):
        if cells[at].source.startswith('## At a glance'):
            return cells[:at] + cells[following:after] + cells[at:following] + cells[after:]
    return cells
