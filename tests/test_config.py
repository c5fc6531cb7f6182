"The config on machines we do not have, from a command line, from YAML, through a pickle; and that it never warns by itself."
import dataclasses, datetime, json, pickle, warnings

import pytest, torch, yaml
from transformers import HfArgumentParser, TrainingArguments

import dpo_nb.train.config as module
from conftest import live_trl
from dpo_nb import DPOConfig


@pytest.fixture
def machine(monkeypatch):
    "A function that makes this machine look like another one; nothing but the questions that `native_bf16` asks is answered."
    def pretend(cuda=None, hip=None, mps=False, xpu=False, flags=()):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda *a: cuda)
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda *a: 'a GPU')
        monkeypatch.setattr(torch.version, 'hip', hip)
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
        if hasattr(torch, 'xpu'): monkeypatch.setattr(torch.xpu, 'is_available', lambda: xpu)
        monkeypatch.setattr(module, 'cpu_flags', lambda: set(flags))
    return pretend


MACHINES = {  # name → (what it says, bf16 when unset)
    'T4': (dict(cuda=(7, 5)), False), 'V100': (dict(cuda=(7, 0)), False), 'A100': (dict(cuda=(8, 0)), True), 'RTX 4090': (dict(cuda=(8, 9)), True),
    'H100': (dict(cuda=(9, 0)), True), 'MI250': (dict(cuda=(9, 0), hip='6.2'), True), 'MacBook': (dict(mps=True, flags=['bf16']), False),
    'Intel GPU': (dict(xpu=True), True), 'old CPU': (dict(flags=['avx2', 'avx512f']), False), 'avx512_bf16': (dict(flags=['avx512_bf16']), True),
    'amx': (dict(flags=['amx_bf16', 'amx_tile']), True), 'Graviton 3': (dict(flags=['asimd', 'bf16']), True), 'unknown': (dict(), False)}


@pytest.mark.parametrize('name', MACHINES)
def test_bf16_is_what_the_hardware_does_natively(machine, name):
    says, on = MACHINES[name]
    if says.get('xpu') and not hasattr(torch, 'xpu'): pytest.skip('this torch knows no Intel GPUs')
    machine(**says)
    c = lambda **kw: module.resolve_bf16(type('C', (), dict(bf16=None, fp16=False, use_cpu=False) | kw)())
    assert c() == on
    assert c(fp16=True) is False and c(bf16=True) is True and c(bf16=False) is False


def test_use_cpu_asks_the_processor_and_not_the_gpu(machine):
    for flags, on in (([], False), (['amx_bf16'], True)):
        machine(cuda=(8, 0), flags=flags)
        assert module.native_bf16(use_cpu=True)[0] == on


@pytest.mark.parametrize('flags, on', [(['avx2'], False), (['avx512_bf16'], True)])
def test_the_whole_config_on_a_cpu(machine, tmp_path, flags, on):
    machine(flags=flags)
    c = DPOConfig(str(tmp_path))
    assert c.bf16 is on and c.use_cpu and c.device.type == 'cpu'
    assert DPOConfig(str(tmp_path), bf16=not on).bf16 is (not on)


def test_says_so_where_trl_would_have_turned_bf16_on(machine, monkeypatch):
    said = []
    monkeypatch.setattr(module.logger, 'warning', said.append)
    for says, on in MACHINES.values():
        machine(**says)
        module.resolve_bf16(type('C', (), dict(bf16=None, fp16=False, use_cpu=False))())
    assert len(said) == 3 and all('does not compute in bfloat16' in s for s in said)  # T4, V100, MacBook; a CPU is no surprise


def test_no_warning_from_any_default(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for kw in (dict(), dict(gradient_checkpointing=False), dict(gradient_checkpointing=True, gradient_checkpointing_kwargs=dict(use_reentrant=False))):
            c = DPOConfig(str(tmp_path), **kw)
            for name in ('gradient_checkpointing', 'activation_checkpointing')[:1+hasattr(c, 'activation_checkpointing')]:  # the name since transformers 5.23
                assert getattr(c, name) == kw.get('gradient_checkpointing', True)
                assert getattr(c, f'{name}_kwargs') == kw.get('gradient_checkpointing_kwargs')


def parse(*argv): return HfArgumentParser(DPOConfig).parse_args_into_dataclasses([str(a) for a in argv])[0]


@pytest.mark.parametrize('argv, field, value', [
    (['--bf16'], 'bf16', True), (['--bf16', 'false'], 'bf16', False), (['--no_gradient_checkpointing'], 'gradient_checkpointing', False),
    (['--gradient_checkpointing', 'no'], 'gradient_checkpointing', False), (['--max_length', '512'], 'max_length', 512), (['--max-length', 'none'], 'max_length', None),
    (['--pad_to_multiple_of', 'auto'], 'pad_to_multiple_of', None), (['--pad_to_multiple_of', '16'], 'pad_to_multiple_of', 16),
    (['--loss_type', 'sigmoid'], 'loss_type', ['sigmoid']), (['--loss_type', 'sigmoid', 'sigmoid', '--loss_weights', '1', '2'], 'loss_weights', [1., 2.]),
    (['--model_init_kwargs', '{"dtype": "bfloat16"}'], 'model_init_kwargs', dict(dtype='bfloat16')), (['--dataset_num_proc', '2'], 'dataset_num_proc', 2),
    (['--truncation_mode', 'keep_end'], 'truncation_mode', 'keep_end'), (['--disable_dropout', 'false'], 'disable_dropout', False),
    (['--logging_steps', '0.1'], 'logging_steps', .1), (['--learning_rate', '1e-5'], 'learning_rate', 1e-5)])
def test_flags(tmp_path, argv, field, value): assert getattr(parse('--output_dir', tmp_path, *argv), field) == value


def test_every_field_has_a_help_that_argparse_can_print(capsys):
    with pytest.raises(SystemExit): parse('--help')
    shown = capsys.readouterr().out
    for f in dataclasses.fields(DPOConfig):
        if f.name not in TrainingArguments.__dataclass_fields__: assert f.metadata['help'] and f'--{f.name}' in shown


def test_the_defaults_survive_a_yaml_file(tmp_path):
    c = DPOConfig(str(tmp_path))
    (tmp_path/'c.yaml').write_text(f'output_dir: {tmp_path}\nmax_length: null\nbeta: 0.2\nloss_type: [sigmoid]\nmodel_init_kwargs: {{dtype: bfloat16}}\n')
    y = HfArgumentParser(DPOConfig).parse_yaml_file(str(tmp_path/'c.yaml'))[0]
    changed = {k for k, v in y.to_dict().items() if v != c.to_dict()[k]}
    assert changed == {'max_length', 'beta', 'model_init_kwargs'} and y.model_init_kwargs == dict(dtype='bfloat16')


@pytest.mark.parametrize('line, field, value', [
    ('eval_strategy: no', 'eval_strategy', 'no'), ('eval_strategy: null', 'eval_strategy', 'no'), ('save_strategy: off', 'save_strategy', 'no'), ('logging_strategy: no', 'logging_strategy', 'no'),
    ('report_to: null', 'report_to', []), ('report_to: none', 'report_to', []), ('report_to: no', 'report_to', []), ('report_to:', 'report_to', []), ('deepspeed: no', 'deepspeed', None),
    ('bf16: "no"', 'bf16', False), ('gradient_checkpointing: "off"', 'gradient_checkpointing', False), ('logging_first_step: yes', 'logging_first_step', True),
    ('learning_rate: 5e-6', 'learning_rate', 5e-6), ('max_steps: 1e3', 'max_steps', 1000), ('ld_alpha: none', 'ld_alpha', None), ('max_length: none', 'max_length', None),
    ('pad_to_multiple_of: auto', 'pad_to_multiple_of', None), ('pad_to_multiple_of: 8', 'pad_to_multiple_of', 8), ('debug: no', 'debug', []), ('max_grad_norm: null', 'max_grad_norm', None)])
def test_what_yaml_made_of_a_word_is_turned_back(tmp_path, line, field, value):
    found = getattr(DPOConfig(str(tmp_path), **yaml.safe_load(line)), field)
    assert found == value and isinstance(found, type(value))


@pytest.mark.parametrize('line, field, value', [('eval_strategy: no', 'eval_strategy', 'no'), ('save_strategy: null', 'save_strategy', 'no'), ('report_to: no', 'report_to', []), ('bf16: off', 'bf16', False),
                                                ('report_to: null', 'report_to', []), ('learning_rate: 5e-6', 'learning_rate', 5e-6), ('logging_strategy: off', 'logging_strategy', 'no')])
def test_the_words_of_a_file_for_the_command_line(tmp_path, line, field, value):
    from dpo_nb.run.cli import parse as parse_flags
    (tmp_path/'c.yaml').write_text(f'output_dir: {tmp_path}\n{line}\n')
    assert getattr(parse_flags(['--config', str(tmp_path/'c.yaml')])[2], field) == value
    (tmp_path/'c.yaml').write_text('run_name: no\n')
    with pytest.raises(ValueError, match="run_name=False must be a text; .*quotes"): parse_flags(['--config', str(tmp_path/'c.yaml')])


@pytest.mark.parametrize('given', [dict(run_name=False), dict(hub_model_id=True), dict(run_name=datetime.date(2026, 1, 5)), dict(truncation_mode=False), dict(optim=True), dict(pad_token=False)])
def test_a_word_that_yaml_lost_is_asked_for_in_quotes(tmp_path, given):
    with pytest.raises(ValueError, match=f"{next(iter(given))}=.* must be a text; .*write the word in quotes"): DPOConfig(str(tmp_path), **given)


@pytest.mark.parametrize('given, says', [(dict(bf16='perhaps'), "bf16='perhaps' must be true or false"), (dict(max_steps='2.5'), "max_steps='2.5' must be a whole number"),
                                         (dict(beta='0,1'), "must be a number, such as '0.1' without quotes")])
def test_a_text_that_is_no_number_and_no_switch(tmp_path, given, says):
    with pytest.raises(ValueError, match=says): DPOConfig(str(tmp_path), **given)


def test_texts_and_switches_stay_what_they_are(tmp_path):
    "Every default, as Python has it, means itself."
    c = DPOConfig(str(tmp_path))
    changed = {k: (getattr(c, k), v) for k, v in module.read_values(c).items() if v is not getattr(c, k)}
    assert changed == {}


@pytest.mark.parametrize('given, says', [(dict(pad_token='<|im_end|>'), 'set tokenizer.pad_token'), (dict(truncation_mode='keep_end'), "use 'keep_start'")])
def test_what_trl_drops_is_announced_once_and_works(tmp_path, given, says):
    with pytest.warns(FutureWarning) as got: c = DPOConfig(str(tmp_path), **given)
    ours = [g for g in got if 'TRL 2.0.0 will drop' in str(g.message)]
    assert len(ours) == 1 and says in str(ours[0].message) and ours[0].filename == __file__
    assert all(getattr(c, k) == v for k, v in given.items())


def test_positional_arguments_mean_what_they_mean_in_trl():
    trl = live_trl('trl')
    ours, theirs = ([f.name for f in dataclasses.fields(x)] for x in (DPOConfig, trl.DPOConfig))
    assert ours[:len(theirs)] == theirs and not set(ours[len(theirs):]) & set(theirs)


def test_a_padded_length_that_is_automatic(tmp_path, monkeypatch):
    assert DPOConfig.__dataclass_fields__['pad_to_multiple_of'].default == 'auto' and DPOConfig(str(tmp_path)).pad_to_multiple_of is None
    monkeypatch.setattr(TrainingArguments, 'device', type('Device', (), dict(type='neuron', index=0)))
    assert DPOConfig(str(tmp_path)).pad_to_multiple_of == 128 and DPOConfig(str(tmp_path), pad_to_multiple_of='none').pad_to_multiple_of is None


@pytest.mark.parametrize('name, meant', [('dpo', "is 'sigmoid' meant"), ('sigmiod', "is 'sigmoid' meant"), ('IPO', "is 'ipo' meant"), ('wpo', "'sigmoid' with use_weighting=True"), ('kto-pair', "is 'bco_pair' meant")])
def test_a_loss_of_nearly_that_name(tmp_path, name, meant):
    with pytest.raises(ValueError, match=meant) as e: DPOConfig(str(tmp_path), loss_type=['sft', name])
    assert 'choose one of' in str(e.value) and 'or pass a function' in str(e.value)


def test_checks_do_not_write(tmp_path):
    "Every function of the page called check_… or warn_… leaves the config as it is."
    c = DPOConfig(str(tmp_path), sample_prompts=['Hi.'], label_smoothing=.1)
    before = dict(vars(c))
    for k, f in vars(module).items():
        if k.startswith('check_') and k != 'check_losses' and f.__module__ == module.__name__: f(c)
    module.warn_unread(c, {k: 0. for k in module.loss_fields}), module.resolve_bf16(c), module.read_values(c)
    assert vars(c) == before


def half(p, *, beta=0.1): return p.delta*beta/2


def test_json_pickle_and_replace(tmp_path):
    c = DPOConfig(str(tmp_path), loss_type=['sigmoid', half], beta=.3)
    assert json.loads(c.to_json_string())['loss_type'] == ['sigmoid', 'half']
    d = pickle.loads(pickle.dumps(c))
    assert d.to_dict() == c.to_dict() and d.loss_type[1] is half
    e = dataclasses.replace(c, beta=.2)
    assert {k for k, v in e.to_dict().items() if v != c.to_dict()[k]} <= {'beta', 'logging_dir'} and e.loss_type == c.loss_type


@pytest.mark.parametrize('kw, error, says', [
    (dict(beta=0), ValueError, 'beta=0 must be > 0'), (dict(beta=-.1), ValueError, 'must be > 0'), (dict(max_length=1), ValueError, 'at least 2'),
    (dict(max_length=0), ValueError, 'max_length=0'), (dict(truncation_mode='left'), ValueError, "['keep_start', 'keep_end']"), (dict(loss_type='dpo'), ValueError, 'choose one of'),
    (dict(loss_type=[]), ValueError, 'loss_type is empty'), (dict(loss_type=['sigmoid'], loss_weights=[1, 1]), ValueError, 'one weight per loss'),
    (dict(model_init_kwargs='{'), ValueError, 'not JSON'), (dict(model_init_kwargs='3'), TypeError, 'must be a dict')])
def test_refused(tmp_path, kw, error, says):
    with pytest.raises(error) as e: DPOConfig(str(tmp_path), **kw)
    assert says in str(e.value)
