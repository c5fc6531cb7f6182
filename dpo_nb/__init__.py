"Direct Preference Optimization as literate notebooks, and the trainer they export."
__version__ = "0.1.0"

_where = {  # public name → module that defines it; imported on first use, so `import dpo_nb` stays instant
    'DPOConfig': 'train.config',
    'DPOTrainer': 'train.live',  # with the doctor, and in a notebook a view
    'DataCollatorForPreference': 'data.collator',
    'DataCollatorForVisionPreference': 'data.vision',
    'LiveView': 'train.live',
    'score': 'train.scoring',
    'load_toy_model': 'toy',
    'load_toy_tokenizer': 'toy',
    'load_toy_pairs': 'toy',
    'load_helpful_mini': 'toy',
}
__all__ = list(_where)


def __getattr__(name):
    if name not in _where: raise AttributeError(f"module 'dpo_nb' has no attribute {name!r}; it offers {sorted(_where)}")
    from importlib import import_module
    return getattr(import_module(f'dpo_nb.{_where[name]}'), name)


def __dir__(): return sorted([*globals(), *_where])
