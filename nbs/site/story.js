// The recorded run of the first page, to play: play or drag, choose β, turn some labels. The numbers are those that
// scripts/record_story.py wrote; the page as it comes holds the last step of one run, drawn by scripts/web/home.py.
const figure = document.getElementById('story');
const story = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
const $ = css => figure.querySelector(css);
const sum = list => list.reduce((a, b) => a + b, 0);
const SIDES = ['chosen', 'rejected'], STEPS = 60;
const slider = $('#story-step'), go = $('.go');
let timer = null;

const run = () => story.runs.find(r => r.beta === +$('[name=story-beta]:checked').value && (r.wrong > 0) === $('#story-wrong').checked);

// A probability in words that one can compare.
function likely(p) {
  if (p >= .995) return (100*p).toFixed(2) + ' %';
  if (p >= .001) return +(100*p).toPrecision(2) + ' %';
  return '1 in ' + (+(1/p).toPrecision(2)).toLocaleString('en');
}

// How many times likelier a log-ratio is, in words.
function factor(moved) {
  const k = (+Math.exp(Math.abs(moved)).toPrecision(2)).toLocaleString('en');
  return moved >= 0 ? `${k} times as likely as at the start` : `${k} times less likely than at the start`;
}

function words(frame) {
  if (!frame.step) return 'Before training the model equals its reference: nothing has moved, and the loss is ln 2 = 0.693, whatever the data.';
  const [chosen, rejected] = SIDES.map(side => sum(frame[side]));
  const both = chosen < 0 && rejected < 0 ? ' Both have fallen: the loss asks only for a difference.' : '';
  return `After ${frame.step} steps the chosen review is ${factor(chosen)}, the rejected one ${factor(rejected)}.${both} ${Math.round(100*frame.right)} % of 96 held-out choices are ranked right.`;
}

function showSide(side, frame) {
  const p = Math.exp(sum(story.start[side]) + sum(frame[side]));
  $(`.${side} output`).textContent = likely(p);
  $(`.${side} .bar i`).style.width = Math.max(0, Math.min(100, 100*(1 + Math.log10(Math.max(p, 1e-12))/7))) + '%';
  $(`.${side} p`).replaceChildren(...story.tokens[side].flatMap((text, i) => {
    if (!text.trim() || text.startsWith('<|')) return [];
    const e = document.createElement('span'), r = frame[side][i];
    e.className = 'tok';
    e.textContent = text;
    e.title = (r < 0 ? '−' : '+') + Math.abs(r).toFixed(2) + ' nats';
    if (Math.abs(r) > .04) e.style.background = `rgba(var(--${r > 0 ? 'gain' : 'loss'}),${(Math.min(Math.abs(r)/1.5, 1)*.62).toFixed(2)})`;
    return [e];
  }));
  return p;
}

function showCurve(frames, k) {
  const x = s => 6 + s/STEPS*160, y = v => 78 - Math.min(v, 1)/.8*68;
  const points = some => some.map(f => `${x(f.step).toFixed(1)},${y(f.loss).toFixed(1)}`).join(' ');
  $('svg .all').setAttribute('points', points(frames));
  $('svg .done').setAttribute('points', points(frames.slice(0, k + 1)));
  $('svg circle').setAttribute('cx', x(frames[k].step).toFixed(1));
  $('svg circle').setAttribute('cy', y(frames[k].loss).toFixed(1));
  $('svg .at').textContent = `step ${frames[k].step}`;
}

function show(k) {
  const frames = run().frames, frame = frames[k];
  slider.value = k;
  const told = sum(SIDES.map(side => showSide(side, frame)));
  $('.rest output').textContent = likely(1 - told);
  $('.says').textContent = frame.says;
  $('.now').textContent = `step ${frame.step}`;
  slider.setAttribute('aria-valuetext', `step ${frame.step}, loss ${frame.loss.toFixed(2)}`);
  showCurve(frames, k);
  if (!timer) $('.words').textContent = words(frame);  // while it plays, a screen reader is left in peace
}

function stop() {
  clearInterval(timer);
  timer = null;
  go.textContent = '▶ Train';
  show(+slider.value);
}

function play() {
  if (timer) return stop();
  let k = +slider.value >= +slider.max ? 0 : +slider.value;
  go.textContent = '❚❚ Pause';
  timer = setInterval(() => { if (k >= +slider.max) return stop(); show(++k); $('.words').textContent = words(run().frames[k]); }, 220);
  show(k);
}

go.addEventListener('click', play);
slider.addEventListener('input', () => { if (timer) stop(); show(+slider.value); });
for (const e of figure.querySelectorAll('.switches input')) e.addEventListener('change', () => show(+slider.value));
