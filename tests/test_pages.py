"How a page is made, checked on every page there is: structure, import order, assertions, clean and in sync."
import ast, json, re, subprocess, sys, urllib.request
from functools import cache
from graphlib import TopologicalSorter
from importlib import metadata

import nbformat
import pytest
import yaml
import first_cell
from conftest import run
from project import ROOT, directives, page_url, pages, settings

NBS, LIB = ROOT/'nbs', ROOT/'dpo_nb'
PAGES = {p.relative_to(NBS).as_posix(): p for p in pages()}
SKIP = set(settings()['tst_flags'].split())
LOSS_HEADINGS = ['At a glance', 'The problem', 'The objective', 'Derivation', 'Naive code', 'The code', 'By hand', 'Gradient',
                 'Limits and identities', 'See it', 'Watch it train', 'What goes wrong', 'Paper and TRL', 'Exercises', 'Check yourself']
DEVELOPMENT = {'nbdev', 'fastcore', 'execnb', 'pytest', 'trl', 'gguf', 'smalldocs', 'playwright', 'nbclient', 'nbformat', 'jupytext'}

every_page = pytest.mark.parametrize('name', PAGES)


# From the ground up: a module imports from lower layers, and from its own folder without a circle. `views` is a wing that takes numbers.
LAYERS = [('toy', 'logps', 'pairs', 'divergences'), ('losses',), ('views',), ('data',), ('model',), ('reference',), ('train',), ('diagnose',), ('api',), ('run',)]
UPWARD = {('views.batch', 'model.prefix_sharing')}  # not yet in their right places


def layer(name):
    "How high a module or page stands; pages outside of the layers (Learn, guides, labs) stand above all."
    top = name.partition('.')[0].partition('/')[0]
    return next((i for i, tops in enumerate(LAYERS) if top in tops), len(LAYERS))


def tree(code):
    "The parsed code of a cell, without IPython's own lines."
    return ast.parse('\n'.join(re.sub(r'^(\s*)[%!].*', r'\1pass', l) for l in code.splitlines()))


@cache
def cells(name):
    "The page's code cells: (directives, syntax tree, cell)."
    nb = json.loads(PAGES[name].read_text(encoding='utf-8'))
    split = [(directives(''.join(c['source'])), c) for c in nb['cells'] if c['cell_type'] == 'code']
    return [(found, tree(code), c) for (found, code), c in split]


def exported(found): return bool({'export', 'exports'} & set(found))


@cache
def modules():
    "Exported module, `losses.sigmoid`, and its page."
    found = [(d['default_exp'], name) for name in PAGES for d, _, _ in cells(name) if 'default_exp' in d]
    assert len({m for m, _ in found}) == len(found), f'two pages export one module: {found}'
    return dict(found)


def imported(nodes, package=()):
    "Absolute names of the modules imported anywhere under `nodes`; `package` is where relative imports start."
    for node in nodes:
        for n in ast.walk(node):
            if isinstance(n, ast.Import): yield from (a.name for a in n.names)
            if isinstance(n, ast.ImportFrom):
                base = '.'.join([*package[:len(package)-n.level+1], *filter(None, [n.module])]) if n.level else n.module
                below = [f'{base}.{a.name}' for a in n.names]
                yield from (b if b.removeprefix('dpo_nb.') in modules() else base for b in below)


def ours(names):
    "Those of `names` that are in the package, without its name; the root is ''."
    return {n.removeprefix('dpo_nb').lstrip('.') for n in names if n.split('.')[0] == 'dpo_nb'}


def layer_errors(names, mine):
    "What the module or page `mine` may not import of `names`."
    for mod in ours(names):
        if not mod: yield 'the package root'
        elif mod not in modules(): yield f'dpo_nb.{mod}, which no page exports'
        elif layer(mod) > layer(mine) and (mine, mod) not in UPWARD: yield f'dpo_nb.{mod}, which lies in a higher layer'


def generated():
    "The package's exported files: (module, syntax tree)."
    for p in sorted(LIB.rglob('*.py')):
        if p.name not in ('__init__.py', '_modidx.py'):
            yield '.'.join(p.relative_to(LIB).with_suffix('').parts), ast.parse(p.read_text(encoding='utf-8'))


@every_page
def test_notebook_is_well_formed(name):
    nb = nbformat.from_dict(json.loads(PAGES[name].read_text(encoding='utf-8')))  # nbformat.read would mend ids
    nbformat.validate(nb)
    ids = [c.id for c in nb.cells]
    assert len(set(ids)) == len(ids), 'cell ids repeat'
    assert 'widgets' not in nb.metadata, 'widget state is saved'
    errors = [o.evalue for c in nb.cells for o in c.get('outputs', []) if o.output_type == 'error']
    assert not errors, f'saved errors: {errors}'
    assert PAGES[name].stat().st_size < 1_000_000


@every_page
def test_title_cell(name):
    first = json.loads(PAGES[name].read_text(encoding='utf-8'))['cells'][0]
    assert first['cell_type'] == 'markdown'
    title, *rest = [l for l in ''.join(first['source']).splitlines() if l.strip()]
    assert re.fullmatch(r'# \S.*', title) and len(rest) == 1 and re.fullmatch(r'> \S.*', rest[0]), 'not `# Title` and `> one sentence`'


@every_page
def test_first_code_cell_installs_the_release(name):
    "The one text of scripts/first_cell.py, before any import, never run here, and without an output."
    _, _, cell = cells(name)[0]
    wanted = first_cell.cell(PAGES[name], json.loads(PAGES[name].read_text(encoding='utf-8')))
    assert ''.join(cell['source']) == wanted and not cell['outputs'], 'run scripts/first_cell.py'


@pytest.mark.parametrize('have, colab, asks', [
    (dict(dpo_nb='VERSION', fastcore='1.8', torch='2.9.0+cu126'), True, None),             # all is there
    (dict(dpo_nb='0.0.1', fastcore='1.8', torch='2.9.0+cu126'), False, None),              # an own installation is left alone
    (dict(dpo_nb='0.0.1', fastcore='1.8', torch='2.9.0+cu126'), True, ['torch==2.9.0+cu126']),
    (dict(torch='2.9.0+cu126', fastcore='2.0'), True, ['torch==2.9.0+cu126']),             # Colab as it comes
    (dict(), False, [])])
def test_first_cell_installs_only_what_is_missing(have, colab, asks, monkeypatch, capsys, tmp_path):
    version, ran, fetched = settings()['version'], [], []
    have = {k: v.replace('VERSION', version) for k, v in have.items()}
    def look(name):
        if name not in have: raise metadata.PackageNotFoundError(name)
        return have[name]
    def install(command, check):
        ran.append(command[1:])
        have.update(dpo_nb=version, torch=have.get('torch', '2.13.0'), transformers='5')
    monkeypatch.setattr(metadata, 'version', look)
    monkeypatch.setattr(subprocess, 'run', install)
    if colab: monkeypatch.setitem(sys.modules, 'google.colab', object())
    page = PAGES['guides/speed_and_memory.ipynb']
    code = first_cell.cell(page, json.loads(page.read_text(encoding='utf-8')))
    monkeypatch.setattr(metadata, 'metadata', lambda name: {'Home-page': 'https://code.example.org/group/dpo_nb'})
    monkeypatch.setattr(urllib.request, 'urlretrieve', lambda url, file: fetched.append((url, file)))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    address = f"https://code.example.org/group/dpo_nb/raw/{settings()['branch']}/nbs/guides/speed.json"
    assert (address, 'speed.json') in fetched  # the page's table is not in the wheel, and not beside a notebook in Colab
    assert ran == ([] if asks is None else [['-m', 'pip', 'install', '-q', f'dpo_nb=={version}', 'fastcore<2', *asks]])
    assert f'this page: dpo_nb {version}; here: dpo_nb {have["dpo_nb"]}, torch {have["torch"]}' in capsys.readouterr().out


READERS = {n: first_cell.companions(p, json.loads(p.read_text(encoding='utf-8'))) for n, p in PAGES.items()}


@pytest.mark.parametrize('name', [n for n, files in READERS.items() if files])
def test_first_cell_fetches_what_the_page_reads(name, monkeypatch, tmp_path):
    "In an empty folder each file of the repository that the code names is put where the code looks for it; `make notebooks` then runs every page with these files alone."
    home = tmp_path/'a'/'b'
    home.mkdir(parents=True)
    def fetch(url, file): (home/file).write_bytes((ROOT/url.removeprefix(f"https://code.example.org/dpo_nb/raw/{settings()['branch']}/")).read_bytes())
    monkeypatch.setattr(metadata, 'version', lambda name: settings()['version'])
    monkeypatch.setattr(metadata, 'metadata', lambda name: {'Home-page': 'https://code.example.org/dpo_nb'})
    monkeypatch.setattr(urllib.request, 'urlretrieve', fetch)
    monkeypatch.chdir(home)
    exec(''.join(cells(name)[0][2]['source']), {})
    assert sorted(p.relative_to(home).as_posix() for p in home.rglob('*') if p.is_file()) == sorted(f.replace('../', '') for f in READERS[name])
    assert all((home/f.replace('../', '')).read_bytes() == (PAGES[name].parent/f).read_bytes() for f in READERS[name])


def test_every_file_that_lies_outside_the_package_is_found():
    "Tables beside a page, files of another folder, and whole folders."
    found = {n: set(f) for n, f in READERS.items()}
    assert found['guides/speed_and_memory.ipynb'] == {'memory.json', 'speed.json'} and found['labs/choose_a_loss.ipynb'] == {'choose_a_loss.json'}
    assert found['guides/scaling.ipynb'] == {f'../../configs/{p.name}' for p in (ROOT/'configs').iterdir()}
    assert found['diagnose/pulse.ipynb'] >= {'../guides/real_model.json', '../guides/vision.json'} and found['index.ipynb'] == {'sidebar.yml', 'site/story.json'}
    assert not found['run/cli.ipynb'], 'files that a page makes are not fetched'


@every_page
def test_outputs_are_saved(name):
    "A page that was never run, or a cell that prints and has nothing to show."
    run_here = [(t, c) for d, t, c in cells(name) if not SKIP & set(d) and d.get('eval') != 'false']
    assert any(c['outputs'] for _, c in run_here), 'no saved output at all: run the page with scripts/run_pages.py'
    prints = lambda t: any(isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) and getattr(n.value.func, 'id', '') == 'print' for n in t.body)
    silent = [''.join(c['source']) for t, c in run_here if prints(t) and not c['outputs']]
    assert not silent, f'printing cells without output: {silent}'


@every_page
def test_saved_outputs_are_the_same_anywhere(name):
    "No warnings or progress bars, no path of the machine that ran the page, no address in memory."
    outputs = [o for _, _, c in cells(name) for o in c['outputs']]
    assert not [''.join(o['text']) for o in outputs if o.get('name') == 'stderr']
    text = '\n'.join(''.join(v) for o in outputs for k, v in {'text': o.get('text', ''), **o.get('data', {})}.items() if k.startswith('text'))
    assert not re.findall(r'(?<![\w.])/(?:home|root|tmp|work|Users|private|var)/\S*|\bat 0x[0-9a-f]{6,}', text)


@every_page
def test_imports_stand_alone(name):
    "nbdev runs a cell with an import again when it builds the site, and warns if it holds anything else."
    mixed = [''.join(c['source']) for d, t, c in cells(name) if d.get('eval') != 'false'
             and any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in (t.body if exported(d) else ast.walk(t)))
             and not all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in t.body)]
    assert not mixed, 'imports mixed with other code:\n' + '\n---\n'.join(mixed)


@pytest.mark.parametrize('name', [n for n in PAGES if n != 'index.ipynb'])
def test_page_imports_only_lower_layers(name):
    "Figures of `views` may be shown anywhere, and their own pages show them at work; so may pages outside of the layers use all."
    names = {n for n in imported([t for _, t, _ in cells(name)]) if not n.startswith('dpo_nb.views.')}
    mine = 'index' if name.startswith('views/') else name.removesuffix('.ipynb').replace('/', '.')
    assert not list(layer_errors(names, mine))


def test_modules_import_only_lower_layers():
    for mod, code in generated():
        assert mod in modules(), f'dpo_nb/{mod.replace(".", "/")}.py has no page'
        found = set(imported([code], ('dpo_nb', *mod.split('.')[:-1])))
        assert not list(layer_errors(found, mod)), mod
        assert not DEVELOPMENT & {f.split('.')[0] for f in found}, f'{mod} imports development tools'
        if mod.startswith('losses.') and mod not in ('losses.registry', 'losses.objective'):
            beyond = {f for f in found if f.split('.')[0] not in {'torch', 'dpo_nb', *sys.stdlib_module_names}}
            assert not beyond and ours(found) <= {'pairs'}, f'{mod} imports more than torch and dpo_nb.pairs: {sorted(found)}'


def test_no_circles_between_modules():
    below = {mod: ours(imported([code], ('dpo_nb', *mod.split('.')[:-1]))) for mod, code in generated()}
    TopologicalSorter(below).prepare()  # raises CycleError


def is_assertion(n):
    called = n.func if isinstance(n, ast.Call) else None
    name = getattr(called, 'id', getattr(called, 'attr', '')) or ''
    return isinstance(n, ast.Assert) or name.startswith(('test_', 'assert_', 'expect_fail'))


@pytest.mark.parametrize('name', sorted(modules().values()))
def test_definitions_are_shown_and_asserted(name):
    "Each name of the module's `__all__`: used within three code cells of its definition, asserted at least twice."
    mod = next(m for m, n in modules().items() if n == name)
    code = ast.parse((LIB/(mod.replace('.', '/') + '.py')).read_text(encoding='utf-8'))
    public = next(ast.literal_eval(n.value) for n in code.body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__')
    page, problems = cells(name), []
    for symbol in public:
        defined = [i for i, (d, t, _) in enumerate(page) if exported(d) for n in t.body
                   if getattr(n, 'name', None) == symbol or isinstance(n, ast.Assign) and any(getattr(x, 'id', 0) == symbol for x in n.targets)]
        if not defined: continue  # re-exported from a lower page
        uses = lambda t: any(getattr(n, 'id', getattr(n, 'attr', None)) == symbol for n in ast.walk(t))
        after = [(t, not exported(d) and uses(t)) for d, t, _ in page[defined[0]+1:]]
        if not any(used for _, used in after[:3]): problems.append(f'{symbol} is not used within three code cells')
        count = sum(is_assertion(n) for t, used in after if used for n in ast.walk(t))
        if count < 2: problems.append(f'{symbol}: {count} assertion(s) in the cells that use it')
    assert not problems, problems


LOSSES = [n for m, n in modules().items() if m.startswith('losses.') and m not in ('losses.mixing', 'losses.registry', 'losses.objective') and any(
    isinstance(x, ast.FunctionDef) and x.name.endswith('_loss') for d, t, _ in cells(n) if exported(d) for x in t.body)]


@pytest.mark.parametrize('name', LOSSES)
def test_loss_page_headings(name):
    nb = json.loads(PAGES[name].read_text(encoding='utf-8'))
    text = '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown')
    assert re.findall(r'(?m)^## +(.*?) *$', text) == LOSS_HEADINGS


def test_sidebar_lists_the_pages():
    bar = yaml.safe_load((NBS/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    listed = [p for part in bar for p in ([part] if isinstance(part, str) else part['contents'])]
    assert sorted(listed) == sorted(PAGES), 'nbs/sidebar.yml and the notebooks differ'
    assert listed[0] == 'index.ipynb' and len(set(listed)) == len(listed), 'a page is listed twice'


def test_a_page_is_called_like_its_module():
    "Page files carry no numbers."
    other = {mod: page for mod, page in modules().items() if page != mod.replace('.', '/') + '.ipynb'}
    assert not {k: v for k, v in other.items() if k not in ('views.explorer', 'views.run')}
    assert not [n for n in PAGES if re.search(r'(^|/)\d', n)]


def test_quarto_configuration_is_one_file():
    assert (NBS/'_quarto.yml').is_symlink() and (NBS/'_quarto.yml').resolve() == ROOT/'_quarto.yml'


def test_landing_page_is_short_and_maps_every_page():
    assert len(json.loads(PAGES['index.ipynb'].read_text(encoding='utf-8'))['cells']) <= 25
    readme = (ROOT/'README.md').read_text(encoding='utf-8')
    for name in set(PAGES) - {'index.ipynb'}:
        title, claim = [l.lstrip('#> ') for l in ''.join(json.loads(PAGES[name].read_text(encoding='utf-8'))['cells'][0]['source']).splitlines() if l.strip()]
        assert f'[{title}]({page_url(settings(), name)}) | {claim} |' in readme, f'the map does not show {name}: run nbs/index.ipynb, then `make readme`'


def test_readme_is_the_landing_page():
    done = run(sys.executable, 'scripts/readme.py', '--check', check=False)
    assert done.returncode == 0, done.stderr


def test_clean_and_in_sync(checkout):
    "`nbdev_clean` and `nbdev_export` change no file and make none."
    state = lambda: {p.relative_to(checkout): p.read_bytes() for p in checkout.rglob('*') if p.is_file()
                     and not {'__pycache__', 'scripts', 'tests'} & set(p.parts)}
    before = state()
    run('nbdev_clean', cwd=checkout)
    cleaned = state()
    assert [p for p in before if before[p] != cleaned[p]] == [], 'not clean: run `make sync`'
    run('nbdev_export', cwd=checkout)
    after = state()
    assert sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p)) == [], 'out of sync: run `make sync`'


def test_python_of_settings_can_read_the_code():
    oldest = tuple(map(int, settings()['min_python'].split('.')))
    for folder in (LIB, ROOT/'scripts', ROOT/'tests'):
        for p in folder.rglob('*.py'): ast.parse(p.read_text(encoding='utf-8'), feature_version=oldest)
