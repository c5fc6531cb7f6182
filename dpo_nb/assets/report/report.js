// The report is complete without this script. It moves numbers that are already in the page; it computes none.

// Charts: the numbers of the key follow the pointer, a finger or the arrow keys.
for (const svg of document.querySelectorAll('svg[data-lines]')) {
  const [x0, x1, left, right, width] = JSON.parse(svg.dataset.axis), lines = JSON.parse(svg.dataset.lines)
  const [step, ...values] = svg.parentNode.querySelectorAll('b'), cursor = svg.querySelector('.cursor')
  const steps = [...new Set(lines.flatMap(([, points]) => points.map(p => p[0])))].sort((a, b) => a - b)
  const near = (points, s) => points.reduce((a, b) => Math.abs(b[0] - s) < Math.abs(a[0] - s) ? b : a)
  let at = steps.length - 1
  function show(i) {
    at = Math.max(0, Math.min(steps.length - 1, i))
    const s = steps[at]
    cursor.setAttribute('transform', `translate(${left + (s - x0) / (x1 - x0) * (right - left)} 0)`)
    cursor.removeAttribute('visibility')
    step.textContent = s
    lines.forEach(([, points], k) => {
      const [t, v] = near(points, s)
      values[k].textContent = t == s ? v : `${v} at ${t}`
    })
  }
  function follow(e) {
    const box = svg.getBoundingClientRect(), x = (e.clientX - box.left) / box.width * width
    const [s] = near(steps.map(t => [t]), x0 + (x - left) / (right - left) * (x1 - x0))
    show(steps.indexOf(s))
  }
  svg.addEventListener('pointermove', follow)
  svg.addEventListener('pointerdown', follow)
  svg.addEventListener('keydown', e => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[e.key]
    if (by) { show(at + by); e.preventDefault() }
  })
}

// Tokens: each answer is one stop of the Tab key, and the arrow keys walk inside it.
for (const answer of document.querySelectorAll('.tokens')) {
  const tokens = [...answer.querySelectorAll('.t')]
  const stop = token => tokens.forEach(t => t.tabIndex = t == token ? 0 : -1)
  stop(tokens[0])
  answer.addEventListener('focusin', e => stop(e.target))
  answer.addEventListener('keydown', e => {
    const next = tokens[tokens.indexOf(e.target) + ({ ArrowRight: 1, ArrowLeft: -1 }[e.key] || NaN)]
    if (next) { next.focus(); e.preventDefault() }
  })
}

// The slider over checkpoints: the numbers and shades of each are in the page already.
for (const slider of document.querySelectorAll('.moments input')) {
  const steps = JSON.parse(slider.dataset.steps), moments = slider.closest('.moments'), places = [...moments.parentNode.querySelectorAll('[data-at]')]
  const at = places.map(e => JSON.parse(e.dataset.at))
  moments.hidden = false
  slider.addEventListener('input', () => {
    const k = +slider.value
    moments.querySelector('output').textContent = steps[k]
    slider.setAttribute('aria-valuetext', `step ${steps[k]}`)
    places.forEach((e, j) => {
      if (!e.classList.contains('tokens')) e.textContent = at[j][k]
      else e.querySelectorAll('.t').forEach((t, i) => { [t.className, t.title] = [`t ${at[j][k][i][0]}`.trim(), at[j][k][i][1]] })
    })
  })
}

// Tables that can be sorted: the head of each column becomes a button.
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0]
  const value = (row, i) => { const c = row.cells[i]; return c.dataset.v ?? c.textContent }
  heads.forEach((head, i) => {
    const button = document.createElement('button')
    button.type = 'button'
    button.textContent = head.textContent
    head.replaceChildren(button)
    button.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') == 'ascending' ? -1 : 1
      heads.forEach(h => h.removeAttribute('aria-sort'))
      head.setAttribute('aria-sort', down > 0 ? 'ascending' : 'descending')
      const by = (a, b) => (+a - +b) || (isNaN(+a - +b) ? String(a).localeCompare(b) : 0)
      body.append(...[...body.rows].sort((a, b) => down * by(value(a, i), value(b, i))))
    })
  })
}

// Code: a button that copies it.
for (const block of document.querySelectorAll('.code')) {
  const button = document.createElement('button'), code = block.querySelector('code')
  button.type = 'button'
  button.textContent = 'Copy'
  button.addEventListener('click', async () => {
    getSelection().selectAllChildren(code)
    try { await navigator.clipboard.writeText(code.textContent); button.textContent = 'Copied' }
    catch { button.textContent = 'Marked; copy it with the keyboard' }
  })
  block.append(button)
}

// In a frame without an address of its own (a notebook) a link to a section would load the outer page.
if (location.protocol == 'about:') for (const a of document.querySelectorAll('nav a')) a.addEventListener('click', e => {
  document.querySelector(a.hash).scrollIntoView()
  e.preventDefault()
})

addEventListener('beforeprint', () => document.querySelectorAll('details.long').forEach(d => d.open = true))
