// Draw the formulas of a page with KaTeX. One that is too wide scrolls in its box, with the keyboard too.
document.addEventListener('DOMContentLoaded', () => {
  for (const e of document.querySelectorAll('.tex'))
    katex.render(e.textContent, e, {displayMode: e.matches('.display'), throwOnError: false});
});
for (const when of ['load', 'resize']) addEventListener(when, () => {
  for (const e of document.querySelectorAll('main .formula')) {
    const room = e.closest('p, li, td, th, div').clientWidth;
    const wide = [...e.querySelectorAll('.base')].some(b => b.offsetWidth > room);
    e.classList.toggle('wide', wide);
    if (wide) e.tabIndex = 0; else e.removeAttribute('tabindex');
  }
});
