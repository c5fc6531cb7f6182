// The site's search. The index (site/index.js, made by scripts/web/search.py) is loaded when the field is first used.
// A query is a set of words in any order: filler words are ignored, a word also finds its other forms and its synonyms,
// titles and headings count more than prose, prose more than code, and a section with more of the words comes first.
const root = document.querySelector('script[data-root]').dataset.root;
const FILLER = new Set(('a an and are as at be by can could do does did for from get go goes going had has have how i if in into is it its ' +
  'many me much my not of on or our so than that the their then there they this to up use using was we what when where which who why will with would you your').split(' '));
// Words that mean the same to a reader; each group is one word of the query.
const SAME = [['beta', 'β'], ['down', 'fall', 'drop', 'decrease', 'sink', 'lower'], ['crash', 'interrupt', 'killed', 'abort', 'preempt'], ['resume', 'continue', 'restart'],
  ['gb', 'gigabyte', 'memory', 'oom', 'gib', 'vram'], ['logprob', 'logp', 'log-prob', 'log-probs', 'likelihood'], ['image', 'picture', 'vision', 'multimodal', 'vlm'], ['gpu', 'cuda', 'device'],
  ['multi-gpu', 'ddp', 'fsdp', 'deepspeed', 'distributed'], ['doubled', 'double', 'twice', 'larger', 'bigger'], ['first', 'initial', 'start', 'begin'], ['update', 'step'], ['noisy', 'noise', 'wrong', 'mislabelled', 'flipped'],
  ['ref', 'reference'], ['eos', 'end-of-turn', 'stop', 'end-of-text'], ['peft', 'lora', 'adapter', 'qlora'], ['lr', 'learning-rate'], ['eval', 'evaluation', 'held-out', 'test'], ['faster', 'speed', 'slow', 'fast'],
  ['pad', 'padding'], ['length', 'long', 'verbose', 'longer'], ['delta', 'Δ'], ['nan', 'inf', 'infinite', 'diverge'], ['checkpoint', 'save', 'saved'], ['tools', 'tool', 'function-calling'], ['trl', 'migrate', 'migration']];

// A word without the endings that do not change what it is about.
function stem(word) {
  word = word.toLowerCase();
  if (word.length > 5) word = word.replace(/(?:ing|ies|ed|es|s|er)$/, '');
  else if (word.length > 3) word = word.replace(/s$/, '');
  return word.replace(/(.)\1$/, '$1').replace(/e$/, '');
}

const split = text => text.toLowerCase().match(/[\p{L}\p{N}_+]+(?:-[\p{L}\p{N}_+]+)*/gu) || [];
const synonyms = new Map();
for (const group of SAME) for (const word of group) synonyms.set(stem(word), group.map(stem));

let index = null;  // [{page, section, fields: [{stem: count}…]}]

function counted(text) {
  const found = new Map();
  for (const word of split(text)) for (const part of new Set([word, ...word.split(/[-_]/)])) {
    const s = stem(part);
    if (s) found.set(s, (found.get(s) || 0) + 1);
  }
  return found;
}

function build(pages) {
  const entries = [];
  for (const page of pages) {
    const title = counted(page.title), claim = counted(page.claim);
    page.sections.forEach((s, i) => entries.push({page, heading: s[0], anchor: s[1], text: s[2], top: i === 0,
      fields: [title, counted(s[0]), i === 0 ? claim : new Map(), counted(s[2]), counted(s[3])]}));
  }
  const frequency = new Map();
  for (const e of entries) for (const s of new Set(e.fields.flatMap(f => [...f.keys()]))) frequency.set(s, (frequency.get(s) || 0) + 1);
  for (const e of entries) e.length = [...e.fields[3].values()].reduce((a, b) => a + b, 0);
  return {entries, frequency, vocabulary: [...frequency.keys()]};
}

// The stems that a word of the query stands for, with weights: itself, its synonyms, and, where no page has it, as while one types, longer words that begin with it.
function meanings(word) {
  const s = stem(word), found = new Map([[s, 1]]);
  for (const other of synonyms.get(s) || []) if (other !== s) found.set(other, .7);
  if (!index.frequency.has(s) && s.length > 2)
    for (const other of index.vocabulary) if (other !== s && other.startsWith(s)) found.set(other, Math.max(found.get(other) || 0, .5));
  return found;
}

const WEIGHTS = [5, 6, 3, 1, .25];  // title, heading, claim, prose, code

function scoreOf(entry, words) {
  let total = 0, hits = 0;
  for (const {stems, rarity} of words) {
    let best = 0;
    for (const [s, weight] of stems) {
      let here = 0;
      entry.fields.forEach((field, i) => {
        const n = field.get(s);
        if (n) here += WEIGHTS[i]*(i < 3 ? 1 : 2.2*n/(n + 1.2*(.4 + .6*entry.length/150)));
      });
      best = Math.max(best, here*weight);
    }
    if (best) { hits++; total += best*rarity; }
  }
  return total*(hits/words.length)**2;
}

// Best sections of the best pages: at most eight pages, two sections of each.
function find(query) {
  let words = split(query).filter(w => !FILLER.has(w));
  if (!words.length) words = split(query);
  words = words.flatMap(w => /[-_]/.test(w) ? [w, ...w.split(/[-_]/).filter(Boolean)] : [w]);  // a name, and what it is made of
  if (!words.length) return [];
  const N = index.entries.length;
  const asked = words.map(word => {
    const stems = meanings(word);
    const n = Math.max(1, ...[...stems].filter(([, w]) => w === 1).map(([s]) => index.frequency.get(s) || 0));
    return {stems, rarity: Math.log(1 + N/n)};
  });
  const pages = new Map();
  for (const entry of index.entries) {
    const score = scoreOf(entry, asked);
    if (!score) continue;
    const of = pages.get(entry.page) || [];
    of.push({entry, score});
    pages.set(entry.page, of);
  }
  const ranked = [...pages.values()].map(of => {
    of.sort((a, b) => b.score - a.score);
    const list = of[0].entry.page.url === 'names.html' ? .5 : 1;  // it holds every name there is
    return {sections: of.slice(0, 2), score: list*(of[0].score + .25*(of[1]?.score || 0) + .1*(of[2]?.score || 0))};
  });
  ranked.sort((a, b) => b.score - a.score);
  return ranked.slice(0, 8).flatMap((page, i) => page.sections.filter((s, k) => k === 0 || i < 3 && s.score > .6*page.sections[0].score))
    .map(({entry}) => ({entry, words: asked}));
}

// A piece of the section's prose around the first word that was asked for, with such words marked.
function excerpt(entry, asked) {
  const wanted = new Set(asked.flatMap(w => [...w.stems.keys()]));
  const words = entry.text.split(' ');
  const hit = word => split(word).some(w => wanted.has(stem(w)));
  const at = Math.max(0, words.findIndex(hit));
  const line = document.createElement('span');
  for (const word of words.slice(Math.max(0, at - 8), at + 18)) {
    if (hit(word)) {
      const mark = document.createElement('mark');
      mark.textContent = word;
      line.append(mark, ' ');
    } else line.append(word + ' ');
  }
  return line;
}

function option({entry, words}, i) {
  const a = document.createElement('a');
  a.className = 'search-result';
  a.id = `search-${i}`;
  a.setAttribute('role', 'option');
  a.setAttribute('aria-selected', 'false');
  a.tabIndex = -1;
  a.href = root + entry.page.url + (entry.anchor ? '#' + entry.anchor : '');
  const title = document.createElement('b'), where = document.createElement('i');
  title.textContent = entry.page.title;
  where.textContent = entry.heading ? ` › ${entry.heading}` : entry.page.group ? ` · ${entry.page.group}` : '';
  a.append(title, where, excerpt(entry, words));
  return a;
}

function load() {
  if (index) return Promise.resolve();
  return new Promise((done, fail) => {
    const script = document.createElement('script');
    script.src = root + 'site/index.js';
    script.onload = () => { index = build(window.siteIndex); done(); };
    script.onerror = fail;
    document.head.append(script);
  });
}

function addSearch() {
  const place = document.querySelector('#navbarCollapse') || document.querySelector('#quarto-header .navbar');
  if (!place) return;
  const box = document.createElement('div');
  box.className = 'site-search';
  box.setAttribute('role', 'search');
  box.innerHTML = '<input type="search" role="combobox" placeholder="Search  /" aria-label="Search the site" autocomplete="off" aria-expanded="false" aria-controls="search-list" aria-autocomplete="list"><div role="listbox" id="search-list" aria-label="Results" hidden></div>';
  place.append(box);
  const [field, list] = box.children;
  let chosen = -1;
  const options = () => [...list.querySelectorAll('[role=option]')];
  const choose = i => {
    const all = options();
    chosen = all.length ? (i + all.length) % all.length : -1;
    all.forEach((o, k) => o.setAttribute('aria-selected', k === chosen));
    if (chosen >= 0) { field.setAttribute('aria-activedescendant', all[chosen].id); all[chosen].scrollIntoView({block: 'nearest'}); }
    else field.removeAttribute('aria-activedescendant');
  };
  const close = () => { list.hidden = true; field.setAttribute('aria-expanded', 'false'); };
  const show = async () => {
    const query = field.value.trim();
    if (!query) return close();
    await load();
    if (field.value.trim() !== query) return;
    const found = find(query);
    list.replaceChildren(...found.map(option));
    if (!found.length) {
      const none = document.createElement('div');
      none.className = 'none';
      none.textContent = 'Nothing found.';
      list.append(none);
    }
    list.dataset.query = query;
    list.hidden = false;
    field.setAttribute('aria-expanded', String(found.length > 0));
    choose(found.length ? 0 : -1);
  };
  field.addEventListener('focus', load);
  field.addEventListener('input', show);
  field.addEventListener('keydown', e => {
    if (e.key === 'ArrowDown' || e.key === 'ArrowUp') { e.preventDefault(); choose(chosen + (e.key === 'ArrowDown' ? 1 : -1)); }
    if (e.key === 'Enter' && options()[chosen]) { e.preventDefault(); location.href = options()[chosen].href; close(); }
    if (e.key === 'Escape') { close(); field.blur(); }
  });
  document.addEventListener('click', e => { if (!box.contains(e.target)) close(); });
  document.addEventListener('keydown', e => {
    if (e.key !== '/' || e.ctrlKey || e.metaKey || e.target.matches('input, textarea, select, [contenteditable]')) return;
    e.preventDefault();
    const folded = document.querySelector('.navbar-toggler');
    if (!field.checkVisibility() && folded) folded.click();
    field.focus();
  });
}

document.addEventListener('DOMContentLoaded', addSearch);
