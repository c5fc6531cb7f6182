"The page of all public names, by module: signature, one line, and a link to where it is explained."
import ast, html

from project import ROOT, modidx

TITLE = 'API: every public name'
CLAIM = 'Signature, one line and a link for each, by module.'
ROOMS = {'': 'The ground', 'losses': 'Losses', 'data': 'Data', 'model': 'Model', 'reference': 'Reference', 'train': 'Training',
         'diagnose': 'Before and after a run', 'run': 'Running', 'api': 'The public trainer', 'views': 'Figures'}


def signature(node):
    "A function as it is called, or a class with the arguments of its `__init__` or its fields."
    if isinstance(node, ast.ClassDef):
        made = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == '__init__'), None)
        if made: return f'{node.name}({arguments(made.args, method=True)})'
        fields = [n.target.id + (f'={ast.unparse(n.value)}' if n.value is not None and len(ast.unparse(n.value)) < 12 else '') for n in node.body
                  if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        return f'{node.name}({", ".join(fields[:8])}{", …" if len(fields) > 8 else ""})' if fields else node.name
    return f'{node.name}({arguments(node.args)})'


def arguments(args, method=False):
    "Names and defaults, without annotations."
    plain = ast.arguments(posonlyargs=[bare(a) for a in args.posonlyargs], args=[bare(a) for a in args.args[method:]],
                          vararg=bare(args.vararg), kwonlyargs=[bare(a) for a in args.kwonlyargs], kw_defaults=args.kw_defaults, kwarg=bare(args.kwarg), defaults=args.defaults)
    text = ast.unparse(plain)
    return text if len(text) < 160 else text[:text.rindex(',', 0, 150)] + ', …'


def bare(arg): return arg and ast.arg(arg=arg.arg)


def public(module):
    "What a module offers, in the order of its code: (name, signature, first line of the docstring)."
    path = ROOT/(module.replace('.', '/') + '.py')
    body = ast.parse(path.read_text(encoding='utf-8')).body
    offered = next((ast.literal_eval(n.value) for n in body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__'), [])
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name in offered:
            yield node.name, signature(node), (ast.get_docstring(node) or '').partition('\n')[0]


def first_names(module):
    "The names of a module, or the first of them."
    names = [name for name, *_ in public(module)]
    return escaped(', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else ''))


def entry(name, shown, said, place):
    "One name as a line of Markdown."
    return f'- <a class="name" href="{place}"><code>{escaped(shown)}</code></a> {escaped(said, prose=True)}'


def escaped(text, prose=False):
    "Safe between tags; in prose a backtick stays mark-up."
    text = html.escape(text, quote=False)
    return text if prose else text.replace('*', '&#42;').replace('_', '&#95;')


def from_the_root(index):
    "What `from dpo_nb import …` offers, each with the place that explains it."
    body = ast.parse((ROOT/'dpo_nb'/'__init__.py').read_text(encoding='utf-8')).body
    where = next(ast.literal_eval(n.value) for n in body if isinstance(n, ast.Assign) and n.targets[0].id == '_where')
    places = {name: index.get(f'dpo_nb.{module}', {}).get(f'dpo_nb.{module}.{name}', (f'{module.replace(".", "/")}.html',))[0] for name, module in where.items()}
    links = ', '.join(f'<a href="{place}"><code>{escaped(name)}</code></a>' for name, place in places.items())
    return f'`from dpo_nb import …` offers {links}. Everything else is imported from its module.\n'


def page():
    "The whole page as Markdown."
    parts = [f'---\ntitle: "{TITLE}"\ndescription: "{CLAIM}"\ntoc-depth: 2\n---\n']
    index, room = modidx()['syms'], None
    parts.append(from_the_root(index))
    rooms = list(ROOMS)
    where = lambda module: module.split('.')[1] if module.count('.') > 1 else ('api' if module == 'dpo_nb.api' else '')
    for module in sorted(index, key=lambda m: (rooms.index(where(m)) if where(m) in rooms else len(rooms), m)):
        lines = [entry(name, shown, said, index[module][f'{module}.{name}'][0]) for name, shown, said in public(module) if f'{module}.{name}' in index[module]]
        if not lines: continue
        if where(module) != room:
            room = where(module)
            parts.append(f'## {ROOMS.get(room, room)}\n')
        parts.append(f'<details class="module" id="{module}"><summary><code>{escaped(module)}</code> {first_names(module)}</summary>\n\n::: {{.names}}\n' + '\n'.join(lines) + '\n:::\n\n</details>\n')
    return '\n'.join(parts)
