"The index of the site's own search: of each page its title and claim, of each section its heading, prose and the names in its code."
import json, re
from html.parser import HTMLParser

from web import order

SAID = dict(zip('alpha beta gamma delta Delta varepsilon eta theta kappa lambda mu pi rho sigma tau phi chi Psi ell partial sum int infty cdot times sim approx pm le ge ne neq in to mid star sqrt'.split(),
                'α β γ δ Δ ε η θ κ λ μ π ρ σ τ φ χ Ψ ℓ ∂ Σ ∫ ∞ · × ∼ ≈ ± ≤ ≥ ≠ ≠ ∈ → | * √'.split())) | {word: f' {word} ' for word in 'log ln exp max min tanh'.split()}


def plain_tex(text):
    r"The commonest TeX as a line of plain text shows it: `\log\pi_\theta` is `log π_θ`."
    text = re.sub(r'\\(?:mathrm|mathbb|mathcal|text|operatorname)(?:\{([\w ]+)\}| )|\\[bB]igg?[lr]?(?![a-z])', r'\1', text)
    text = re.sub(r'\\([A-Za-z]+)', lambda m: SAID.get(m[1], m[0]), text)
    text = re.sub(r'\\[,;!]', ' ', text).replace('\\|', '‖')
    return re.sub(r'([_^])\{(\w+)\}', r'\1\2', re.sub(' {2,}', ' ', text))


VOID = set('area base br col embed hr img input link meta source track wbr'.split())
SKIPPED = {'script', 'style', 'svg', 'nav', 'button', 'noscript', 'select'}


class Sections(HTMLParser):
    "Title, claim and sections of a rendered page: heading, anchor, prose, code."
    def __init__(self, text):
        super().__init__()
        self.title = self.claim = ''
        self.sections, self.stack, self.into = [dict(anchor='', heading='', text=[], code=[])], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag in VOID: return
        a = dict(attrs)
        self.stack.append((tag, a.get('class') or ''))
        if tag in ('h2', 'h3') and any(t == 'main' for t, _ in self.stack): self.sections.append(dict(anchor=a.get('data-anchor-id') or a.get('id') or '', heading='', text=[], code=[]))

    def handle_endtag(self, tag):
        while self.stack:
            if self.stack.pop()[0] == tag: break
        if tag in ('p', 'li', 'td', 'th', 'div', 'pre'): self.sections[-1]['text'].append(' ')

    def handle_data(self, data):
        tags = {t for t, _ in self.stack}
        classes = ' '.join(c for _, c in self.stack)
        if 'main' not in tags or SKIPPED & tags or 'kicker' in classes or 'page-links' in classes: return
        if 'h1' in tags: self.title += data
        elif 'description' in classes: self.claim += data
        elif tags & {'h2', 'h3'}: self.sections[-1]['heading'] += data
        elif 'pre' in tags: self.sections[-1]['code'].append(data)
        else: self.sections[-1]['text'].append(plain_tex(data) if 'tex' in classes.split() else data)


def names_in(code):
    "The words of some code, each once; what an index needs of it."
    return ' '.join(dict.fromkeys(re.findall(r'[A-Za-z_]\w{2,}', code)))


def page_entry(path, out):
    "A page of the index."
    page = Sections(path.read_text(encoding='utf-8'))
    name = path.relative_to(out)
    where = order.place(name.with_suffix('.ipynb').as_posix())
    squeeze = lambda text: re.sub(r'\s+', ' ', text).strip()
    sections = [[squeeze(s['heading']), s['anchor'], squeeze(''.join(s['text'])), names_in(' '.join(s['code']))] for s in page.sections]
    return dict(url=name.as_posix(), title=squeeze(page.title), claim=squeeze(page.claim), group=where[0] if where else '', sections=[s for s in sections if any(s[2:]) or s[0]])


def search_index(out):
    "The index as a script, which pages may load from a disk too, where they may not fetch."
    pages = [page_entry(p, out) for p in sorted(out.rglob('*.html')) if p.name != '404.html' and 'site_libs' not in p.parts]
    text = json.dumps(pages, ensure_ascii=False, separators=(',', ':')).replace('</', '<\\/')
    (out/'site'/'index.js').write_text(f'window.siteIndex = {text};\n', encoding='utf-8')
