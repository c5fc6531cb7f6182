"The live view in a real kernel: while `train()` blocks it, clicks arrive; afterwards no widget is left. Elsewhere nothing changes."
import json, os, re, time
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from dpo_nb import DPOConfig, DPOTrainer, LiveView, load_toy_model, load_toy_pairs, load_toy_tokenizer

RUN = '''
import os, warnings
import datasets, transformers
from dpo_nb import DPOConfig, DPOTrainer, load_toy_model, load_toy_pairs, load_toy_tokenizer
datasets.disable_progress_bars(); transformers.utils.logging.disable_progress_bar()
class Slow(transformers.TrainerCallback):
    steps = []
    def on_step_end(self, *a, **k): import time; time.sleep(.05)
    def on_step_begin(self, args, state, control, **k): self.steps.append(state.global_step)
args = DPOConfig('out', use_cpu=True, bf16=False, report_to='none', save_strategy='no', gradient_checkpointing=False, max_steps=2000, learning_rate=2e-4,
                 warmup_steps=0, per_device_train_batch_size=2, logging_steps=1)
trainer = DPOTrainer(load_toy_model(), args=args, train_dataset=load_toy_pairs()['train'].select(range(8)), processing_class=load_toy_tokenizer(), callbacks=[Slow()])
'''


class Reader:
    "A notebook's other side: runs cells, keeps the widgets that the kernel opens, and sends what a click sends."
    def __init__(self, folder):
        from jupyter_client.manager import start_new_kernel
        self.manager, self.client = start_new_kernel(kernel_name='python3', cwd=str(folder), env=os.environ | dict(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE'))
        self.widgets, self.closed, self.outputs, self.idle, self.subshell, self.state = {}, set(), [], set(), None, ''

    def __enter__(self): return self

    def __exit__(self, *error):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def until(self, true, seconds=90):
        "Read what the kernel says until a condition holds."
        end = time.time() + seconds
        while not true():
            assert time.time() < end, f'still waiting; {self.texts()[-500:]}'
            try: m = self.client.get_iopub_msg(timeout=1)
            except Exception: continue
            kind, c = m['msg_type'], m['content']
            if kind == 'comm_open': self.widgets[c['comm_id']] = dict(c['data']['state'])
            elif kind == 'comm_msg' and c['data'].get('method') == 'update' and c['comm_id'] in self.widgets: self.widgets[c['comm_id']].update(c['data']['state'])
            elif kind == 'comm_close': self.closed.add(c['comm_id'])
            elif kind in ('stream', 'display_data', 'update_display_data', 'execute_result', 'error'): self.outputs.append((kind, c))
            elif kind == 'status':
                self.state = c['execution_state']  # what JupyterLab writes beside the kernel's name
                if self.state == 'idle': self.idle.add(m['parent_header'].get('msg_id'))

    def texts(self): return ''.join(c.get('text', '') or '\n'.join(c.get('traceback', [])) for _, c in self.outputs)

    def start(self, code): return self.client.execute(code)

    def run(self, code):
        cell = self.start(code)
        self.until(lambda: cell in self.idle)
        assert not [c for k, c in self.outputs if k == 'error'], self.texts()

    def prepare(self, max_steps=2000):
        "Make a trainer, and forget the bars of what was loaded on the way."
        self.run(RUN.replace('max_steps=2000', f'max_steps={max_steps}'))
        self.widgets.clear(); self.closed.clear(); self.outputs.clear()

    def find(self, **state): return next((i for i, w in self.widgets.items() if i not in self.closed and all(w.get(k) == v for k, v in state.items())), None)

    def send(self, widget, data):
        message = self.client.session.msg('comm_msg', dict(comm_id=widget, data=data))
        if self.subshell: message['header']['subshell_id'] = self.subshell
        self.client.shell_channel.send(message)
        return message['header']['msg_id']

    def click(self, widget): return self.send(widget, dict(method='custom', content=dict(event='click')))

    def set(self, widget, value): return self.send(widget, dict(method='update', state=dict(value=value), buffer_paths=[]))

    def shown(self, name='progress'): return next((w['value'] for i, w in self.widgets.items() if i not in self.closed and f'<{name}' in str(w.get('value'))), '')

    def step(self): return int((re.search(r'step (\d+) of', self.shown()) or [0, 0])[1])


@pytest.fixture
def reader(tmp_path):
    with Reader(tmp_path) as r: yield r


@pytest.mark.parametrize('subshell', [False, True])
def test_buttons_answer_while_train_holds_the_kernel(reader, tmp_path, subshell):
    "Pause, another learning rate, go on, stop and save: each by the message that a browser sends, on the channel of the cells or of a subshell."
    reader.prepare()
    if subshell:
        if 'kernel subshells' not in reader.client.kernel_info(reply=True, timeout=60)['content'].get('supported_features', []):
            pytest.skip('ipykernel < 7 has no subshells')
        reader.client.control_channel.send(reader.client.session.msg('create_subshell_request'))
        reader.subshell = reader.client.get_control_msg(timeout=60)['content']['subshell_id']
    training, after = reader.start('trainer.train()'), reader.start('print("after the run")')
    reader.until(lambda: reader.step() > 2)
    pause = reader.find(description='Pause')
    click = reader.click(pause)
    reader.until(lambda: click in reader.idle and reader.find(description='Go on') and 'waiting' in reader.shown())
    stands = reader.step()
    assert 'Answers at step' in reader.shown('div class="dpo-live"') and 'class="t ' in reader.shown('div class="dpo-live"')
    sent = reader.set(reader.find(description='learning rate'), 5e-5)
    reader.until(lambda: sent in reader.idle)
    time.sleep(.5)
    assert reader.step() == stands and training not in reader.idle
    reader.click(pause)
    reader.until(lambda: reader.step() > stands + 2 and reader.state == 'busy')  # the click made it idle, for the reader
    assert 'learning rate 0.0002 → 5e-05' in reader.shown()
    assert 'after the run' not in reader.texts()  # a cell that was sent meanwhile waits
    reader.click(reader.find(description='Stop and save'))
    reader.until(lambda: {training, after} <= reader.idle)
    assert 'after the run' in reader.texts()
    saved = list((tmp_path/'out').glob('checkpoint-*'))
    assert len(saved) == 1 and (saved[0]/'model.safetensors').is_file()
    state = json.loads((saved[0]/'trainer_state.json').read_text())
    last = [h for h in state['log_history'] if 'learning_rate' in h][-1]
    assert last['learning_rate'] == pytest.approx(5e-5*(1 - last['step']/2000), rel=.01)
    assert torch.load(saved[0]/'scheduler.pt')['base_lrs'] == pytest.approx([5e-5]*2)  # so a resumed run goes on with it
    assert set(reader.widgets) == reader.closed, 'widgets are left'
    shown = [c for k, c in reader.outputs if k in ('display_data', 'update_display_data') and 'dpo-live' in c['data'].get('text/html', '')]
    assert len(shown) == 1 and '<svg' in shown[0]['data']['text/html'] and 'application/vnd.jupyter.widget-view+json' not in shown[0]['data']
    assert shown[0]['data']['text/plain'].startswith(f"stopped at step {state['global_step']}")


def test_an_interrupted_run_leaves_no_widget(reader):
    reader.prepare()
    training = reader.start('trainer.train()')
    reader.until(lambda: reader.step() > 2)
    reader.manager.interrupt_kernel()
    reader.until(lambda: training in reader.idle)
    assert 'KeyboardInterrupt' in reader.texts() and set(reader.widgets) == reader.closed
    assert any(re.match(r'interrupted after step \d+ of 2000', c['data'].get('text/plain', '')) for k, c in reader.outputs if k == 'update_display_data')
    reader.outputs.clear()
    reader.run("print([type(c).__name__ for c in trainer.callback_handler.callbacks])")
    assert 'NotebookProgressCallback' in reader.texts()  # it was put aside, and is back


def test_no_view_where_the_bar_is_switched_off(reader):
    reader.prepare(max_steps='2, disable_tqdm=True')
    reader.run('trainer.train()')
    assert not reader.widgets


def trainer(folder, *callbacks, **kw):
    args = DPOConfig(str(folder), use_cpu=True, report_to='none', save_strategy='no', gradient_checkpointing=False,
                     **(dict(bf16=False, max_steps=6, learning_rate=2e-4, warmup_steps=0, per_device_train_batch_size=4, logging_steps=2) | kw))
    return DPOTrainer(load_toy_model(), args=args, train_dataset=load_toy_pairs()['train'].select(range(16)), processing_class=load_toy_tokenizer(), callbacks=list(callbacks))


def test_outside_of_a_notebook_nobody_gets_one(tmp_path):
    assert not [c for c in trainer(tmp_path).callback_handler.callbacks if isinstance(c, LiveView)]


def test_in_a_terminal_it_prints_a_line_per_log(tmp_path, capsys):
    t = trainer(tmp_path, LiveView(), disable_tqdm=True)
    t.train()
    out = capsys.readouterr().out
    assert [l.split()[0] for l in out.splitlines() if re.match(r' +\d+ ', l)] == ['2', '4', '6'] and 'margin' in out


class Looks(TrainerCallback):
    "Asks for answers and tokens at every step."
    def __init__(self, view): self.view = view
    def on_step_begin(self, *a, **k): self.view.looking, self.view.drawn = True, -1e9


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_watching_changes_nothing(tmp_path, precision):
    "Weights and log of a run that was looked at after every step equal those of one that nobody watched, bit for bit."
    view = LiveView(notebook=True, share=.99, every=0.)
    watched, alone = trainer(tmp_path/'a', view, Looks(view), bf16=precision == 'bf16'), trainer(tmp_path/'b', bf16=precision == 'bf16')
    for t in (watched, alone): t.train()
    assert 'Answers at step 6' in view.more or 'Answers at step 5' in view.more
    assert all(torch.equal(a, b) for a, b in zip(watched.model.state_dict().values(), alone.model.state_dict().values()))
    keep = lambda t: [{k: v for k, v in h.items() if 'runtime' not in k and 'per_second' not in k} for h in t.state.log_history]
    assert keep(watched) == keep(alone)


@pytest.mark.parametrize('kind', ['constant', 'cosine', 'linear'])
def test_the_learning_rate_changes_under_every_kind_of_schedule(tmp_path, kind):
    view = LiveView(notebook=False)
    class Halve(TrainerCallback):
        def on_step_begin(self, args, state, control, **k):
            if state.global_step == 2: view.set_learning_rate(1e-4)
    def run(name, *callbacks):
        t = trainer(tmp_path/name, *callbacks, lr_scheduler_type=kind, logging_steps=1, disable_tqdm=True)
        t.train()
        return [h['learning_rate'] for h in t.state.log_history if 'learning_rate' in h]
    plain, changed = run('a'), run('b', view, Halve())
    assert changed[:2] == plain[:2] and changed[3:] == pytest.approx([lr/2 for lr in plain[3:]])


def test_what_cannot_be_a_learning_rate_is_refused_and_said(tmp_path):
    view = LiveView(notebook=False)
    t = trainer(tmp_path, view, disable_tqdm=True, max_steps=2)
    class Wrong(TrainerCallback):
        def on_step_begin(self, *a, **k): view.set_learning_rate(-1.)
    t.add_callback(Wrong())
    t.train()
    assert len(view.changes) == 2 and 'must be a positive number, got -1.0' in view.changes[0]
