// What every page can do: open all folded code at once, show where one is in the sidebar, and be used with the keys alone.
const FOLDS = 'dpo_nb-open-code';

function remembered() {
  try { return localStorage.getItem(FOLDS) === '1'; } catch { return false; }
}

function remember(open) {
  try { localStorage.setItem(FOLDS, open ? '1' : '0'); } catch { /* a private window */ }
}

// The switch at the top of the page: all folded code open, or as the page comes.
function addSwitch() {
  const links = document.querySelector('.page-links');
  const folds = [...document.querySelectorAll('main details.code-fold:not([open])')];
  if (!links || !folds.length) return;
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'open-code';
  const set = open => {
    for (const fold of folds) fold.open = open;
    button.textContent = open ? 'Fold set-up and checks' : 'Show all code';
    button.setAttribute('aria-pressed', open);
  };
  button.addEventListener('click', () => {
    const open = button.getAttribute('aria-pressed') !== 'true';
    set(open);
    remember(open);
  });
  set(remembered());
  links.append(button);
}

// A fold that an address points into opens.
function openTarget() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const fold = target && target.closest('details:not([open])');  // or is one
  if (fold) fold.open = true;
}

// The entry of this page in the sidebar comes into view; the page itself does not move.
function showCurrent() {
  const bar = document.getElementById('quarto-sidebar');
  const here = bar && bar.querySelector('.sidebar-link.active');
  if (!here) return;
  const box = bar.getBoundingClientRect(), entry = here.getBoundingClientRect();
  if (entry.top < box.top + 40 || entry.bottom > box.bottom - 40) bar.scrollTop += entry.top - box.top - box.height/2;
}

// What scrolls sideways is a stop of the Tab key.
function markScrolling() {
  for (const e of document.querySelectorAll('main .sd-table, main .katex-display, main pre, main .figure > p')) {
    if (e.scrollWidth > e.clientWidth + 1) e.tabIndex = 0;
    else if (e.tabIndex === 0) e.removeAttribute('tabindex');
  }
}

document.addEventListener('keydown', e => {
  if ((e.key === 'Enter' || e.key === ' ') && e.target.matches('.callout-header[role=button]')) {
    e.preventDefault();
    e.target.click();
  }
});
document.addEventListener('DOMContentLoaded', () => { addSwitch(); openTarget(); showCurrent(); });
for (const when of ['load', 'resize', 'toggle']) addEventListener(when, markScrolling, true);
addEventListener('hashchange', openTarget);
