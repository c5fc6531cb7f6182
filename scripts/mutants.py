#!/usr/bin/env python
"""Change one small thing in the exported code, and see whether a page or a test notices.

    python scripts/mutants.py --seed 1 --count 40            # one shard of random mutants over the whole package
    python scripts/mutants.py --only run/job --count 20      # of one module
    python scripts/mutants.py --seed 1 --count 200 --shard 2/5
    python scripts/mutants.py --list --count 10              # show them without running anything

A mutant is killed if its page fails, or one of the tests that use its module. The tests are tried in the order of how often they name the module; each
mutant has a limit of time, and a mutant that makes the code hang is killed. Survivors are printed with their line, and `--out` keeps all of them as JSON lines.
Mutants that change nothing are listed with their reason in tests/equivalent_mutants.json and count as killed.
"""
import argparse, ast, json, os, random, re, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue

from project import ROOT, copy_checkout, directives, pages

EQUIVALENT = ROOT/'tests'/'equivalent_mutants.json'
FLIP = {ast.Lt: '<=', ast.LtE: '<', ast.Gt: '>=', ast.GtE: '>', ast.Eq: '!=', ast.NotEq: '==', ast.Is: 'is not', ast.IsNot: 'is', ast.In: 'not in', ast.NotIn: 'in'}
OPERATOR = {ast.Add: '-', ast.Sub: '+', ast.Mult: '/', ast.Div: '*', ast.FloorDiv: '*', ast.Mod: '+'}


@dataclass(frozen=True)
class Mutant:
    "One change: where, and what becomes what."
    page: str      # 'run/job'
    cell: str      # id of the exported cell
    line: int      # of the cell, from 1
    old: str       # the line as it is
    new: str       # the line as it becomes
    kind: str

    @property
    def key(self): return f'{self.page}: {self.old.strip()} → {self.new.strip()}'


def quiet(tree):
    "Nodes that only speak: docstrings, annotations, messages of errors and of loggers."
    out = set()
    for n in ast.walk(tree):
        spoken = []
        if isinstance(n, ast.Raise): spoken = [n]
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr in ('warning', 'info', 'warning_once', 'info_once', 'error'): spoken = [n]
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): spoken = [n.body[0]] if ast.get_docstring(n) is not None else []
        if isinstance(n, ast.arg) and n.annotation: spoken = [n.annotation]
        if isinstance(n, ast.FunctionDef) and n.returns: spoken.append(n.returns)
        if isinstance(n, ast.AnnAssign): spoken = [n.annotation]
        if isinstance(n, (ast.JoinedStr, ast.Import, ast.ImportFrom)): spoken = [n]
        for s in spoken: out |= {id(x) for x in ast.walk(s)}
    return out


def changes(code):
    "(line number, start, end, replacement, kind) of each small change of a cell's code that stays within one line."
    tree = ast.parse(code)
    silent, lines = quiet(tree), code.splitlines()
    def text(n): return lines[n.lineno-1][n.col_offset:n.end_col_offset]
    def whole(n, new, kind):
        if n.lineno == n.end_lineno: yield n.lineno, n.col_offset, n.end_col_offset, new, kind
    def between(a, b, new, kind):
        if a.end_lineno == b.lineno: yield a.end_lineno, a.end_col_offset, b.col_offset, f' {new} ', kind
    for n in ast.walk(tree):
        if id(n) in silent: continue
        if isinstance(n, ast.Compare) and len(n.ops) == 1 and type(n.ops[0]) in FLIP: yield from between(n.left, n.comparators[0], FLIP[type(n.ops[0])], 'comparison')
        if isinstance(n, ast.BinOp) and type(n.op) in OPERATOR and not isinstance(n.left, ast.Constant): yield from between(n.left, n.right, OPERATOR[type(n.op)], 'operator')
        if isinstance(n, ast.BoolOp): yield from between(n.values[0], n.values[1], 'or' if isinstance(n.op, ast.And) else 'and', 'and/or')
        if isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.Not): yield from whole(n, f'({text(n.operand)})' if n.lineno == n.operand.end_lineno else '', 'not')
        if isinstance(n, ast.Constant) and isinstance(n.value, bool): yield from whole(n, str(not n.value), 'constant')
        elif isinstance(n, ast.Constant) and isinstance(n.value, (int, float)): yield from whole(n, str(n.value+1), 'constant')
        if isinstance(n, ast.Constant) and n.value is None: yield from whole(n, '0', 'constant')
        if isinstance(n, (ast.If, ast.IfExp)): yield from whole(n.test, f'not ({text(n.test)})' if n.test.lineno == n.test.end_lineno else '', 'condition')
        if isinstance(n, ast.Call):
            for k in n.keywords:
                if k.arg and k.lineno == k.end_lineno:
                    line = lines[k.lineno-1]
                    comma = re.match(r'\s*,\s*', line[k.end_col_offset:])
                    before = re.search(r',\s*$', line[:k.col_offset])
                    if comma: yield k.lineno, k.col_offset, k.end_col_offset+comma.end(), '', 'argument'
                    elif before: yield k.lineno, before.start(), k.end_col_offset, '', 'argument'
        if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call): yield from whole(n, 'pass', 'statement')
        if isinstance(n, ast.Return) and n.value is not None and not isinstance(n.value, ast.Constant): yield from whole(n, 'return None', 'return')


def mutants(only=None):
    "Every mutant of the package, or of one module."
    for page in pages():
        name = page.relative_to(ROOT/'nbs').with_suffix('').as_posix()
        if only and name != only: continue
        for c in json.loads(page.read_text(encoding='utf-8'))['cells']:
            found, code = directives(''.join(c['source']))
            if c['cell_type'] != 'code' or not {'export', 'exports', 'exporti'} & set(found): continue
            lines = code.splitlines()
            for line, a, b, new, kind in changes(code):
                raw = lines[line-1].encode()
                changed = (raw[:a]+new.encode()+raw[b:]).decode()
                try: ast.parse('\n'.join([*lines[:line-1], changed, *lines[line:]]))
                except SyntaxError: continue
                if changed.strip() != lines[line-1].strip(): yield Mutant(name, c['id'], line, lines[line-1], changed, kind)


def draw(seed, count, only=None):
    "`count` mutants, drawn evenly over the modules' lines."
    every = sorted(mutants(only), key=lambda m: (m.page, m.cell, m.line, m.new))
    return random.Random(seed).sample(every, min(count, len(every)))


def tests_of(page):
    "Test files that use the page's module, those first that name it most."
    module = page.replace('/', '.')
    code = (ROOT/'dpo_nb'/f'{page}.py').read_text(encoding='utf-8')
    public = set(ast.literal_eval(re.search(r'(?s)__all__ = (\[.*?\])', code)[1])) if '__all__' in code else set()
    always = {'losses': ['test_losses.py', 'test_trl_losses.py'], 'views': ['test_live.py'], 'reference': ['test_reference.py'], 'train': ['test_trainer.py']}
    found = [(0, name) for name in always.get(page.partition('/')[0], [])]
    for p in sorted((ROOT/'tests').glob('test_*.py')):
        text = p.read_text(encoding='utf-8')
        score = 5*text.count(module) + sum(len(re.findall(rf'\b{re.escape(n)}\b', text)) for n in public if len(n) > 3)
        if p.name in ('test_pages.py', 'test_site.py', 'test_jupyter.py', 'test_address.py', 'test_package.py', 'test_form.py'): continue
        if score: found.append((-score, p.name))
    return list(dict.fromkeys(name for _, name in sorted(found))) or ['test_trainer.py']


def apply(m, root):
    "Write the mutant into a copy of the checkout, notebook and module."
    page = root/'nbs'/f'{m.page}.ipynb'
    nb = json.loads(page.read_text(encoding='utf-8'))
    cell = next(c for c in nb['cells'] if c['id'] == m.cell)
    source = ''.join(cell['source']).splitlines(keepends=True)
    skip = len(source) - len(directives(''.join(source))[1].splitlines())
    while source[skip+m.line-1].rstrip('\n') != m.old: skip -= 1
    source[skip+m.line-1] = m.new + '\n'
    cell['source'] = source
    page.write_text(json.dumps(nb), encoding='utf-8')
    module = root/'dpo_nb'/f'{m.page}.py'
    lines = module.read_text(encoding='utf-8').splitlines()
    start = next(i for i, l in enumerate(lines) if l.startswith('# %%') and l.endswith('#'+m.cell))
    at = next(i for i in range(start, len(lines)) if lines[i] == m.old)
    lines[at] = m.new
    module.write_text('\n'.join(lines)+'\n', encoding='utf-8')


def restore(m, root):
    for name in (f'nbs/{m.page}.ipynb', f'dpo_nb/{m.page}.py'): shutil.copy(ROOT/name, root/name)


def run(command, root, limit):
    "Exit code; None if it ran out of time."
    env = dict(os.environ, PYTHONPATH=str(root), HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', TOKENIZERS_PARALLELISM='false', OMP_NUM_THREADS='1')
    env['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), env.get('PATH', '')])
    with tempfile.TemporaryDirectory() as cache:
        env['HF_DATASETS_CACHE'] = cache
        process = subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, start_new_session=True)
        try: return process.wait(timeout=max(limit, 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return None


def judge(m, root, limit):
    "'page', a test's name, or 'time' that killed it; '' if it survived; '?' if the time was up while it was still alive."
    try:
        apply(m, root)
        end = time.time()+limit
        code = run(['nbdev_test', '--path', f'nbs/{m.page}.ipynb'], root, limit)
        if code is None: return 'time'
        if code: return 'page'
        for name in tests_of(m.page):
            if time.time() > end: return '?'
            code = run([sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', f'tests/{name}'], root, end-time.time())
            if code is None: return '?'
            if code not in (0, 5): return name
        return ''
    except Exception as e: return f'error: {e}'
    finally: restore(m, root)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--seed', type=int, default=1)
    ap.add_argument('--count', type=int, default=40)
    ap.add_argument('--shard', default='1/1', help='which part of the draw, such as 2/5')
    ap.add_argument('--only', help='one module, such as run/job')
    ap.add_argument('--jobs', type=int, default=2)
    ap.add_argument('--limit', type=int, default=150, help='seconds a mutant')
    ap.add_argument('--list', action='store_true')
    ap.add_argument('--out', type=Path)
    args = ap.parse_args()
    part, of = map(int, args.shard.split('/'))
    drawn = draw(args.seed, args.count, args.only)[part-1::of]
    if args.list: sys.exit('\n'.join(f'{m.kind:10} {m.key}' for m in drawn))
    excused = json.loads(EQUIVALENT.read_text(encoding='utf-8')) if EQUIVALENT.exists() else {}
    free, start = Queue(), time.time()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.jobs): free.put(copy_checkout(Path(folder)/str(i)/'checkout'))
        def one(m):
            if m.key in excused: return m, 'equivalent'
            root = free.get()
            try: return m, judge(m, root, args.limit)
            finally: free.put(root)
        results = []
        with ThreadPoolExecutor(args.jobs) as pool:
            for m, by in pool.map(one, drawn):
                results.append((m, by))
                print(f'{"SURVIVED" if by in ("", "?") else "killed"}{"?" if by == "?" else ""} {by:22} {m.kind:10} {m.key}', flush=True)
                if args.out:
                    with args.out.open('a', encoding='utf-8') as f: f.write(json.dumps(asdict(m) | dict(by=by))+'\n')
    alive = sum(by in ('', '?') for _, by in results)
    print(f'{len(results)-alive} of {len(results)} killed, {100*(1-alive/max(len(results), 1)):.0f} %, in {(time.time()-start)/60:.0f} min')


if __name__ == '__main__': main()
