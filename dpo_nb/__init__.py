"Direct Preference Optimization as literate notebooks, and the trainer they export."
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # what editors and type checkers read; nothing of it is imported when the package is
    from .api import (DataCollatorForPreference, DataCollatorForVisionPreference, DPOConfig, DPOTrainer, LiveView, Objective,
                      PairTrainer, Reference, load_helpful_mini, load_toy_model, load_toy_pairs, load_toy_tokenizer, score)

_where = {  # public name → module that defines it; imported on first use, so `import dpo_nb` stays instant
    'DPOConfig': 'train.config',
    'DPOTrainer': 'api',  # with the doctor, and in a notebook a view
    'DataCollatorForPreference': 'data.collator',
    'DataCollatorForVisionPreference': 'data.vision',
    'LiveView': 'diagnose.live',
    'score': 'diagnose.scoring',
    'Objective': 'losses.objective',
    'PairTrainer': 'train.pair_trainer',
    'Reference': 'reference.reference',
    'load_toy_model': 'toy',
    'load_toy_tokenizer': 'toy',
    'load_toy_pairs': 'toy',
    'load_helpful_mini': 'toy',
}
__all__ = list(_where)


def __getattr__(name):
    from importlib import import_module
    if name not in _where:
        advice = None if name.startswith('_') else import_module('dpo_nb.train.hints').advise_import(name)
        if advice: raise ImportError(advice)  # `from dpo_nb import …` would drop the words of an AttributeError
        raise AttributeError(f"module 'dpo_nb' has no attribute {name!r}; it offers {sorted(_where)}")
    return getattr(import_module(f'dpo_nb.{_where[name]}'), name)


def __dir__(): return sorted([*globals(), *_where])
