"Direct Preference Optimization as literate notebooks, and the trainer they export."
__version__ = "0.1.0"

_where = {  # public name → module that defines it; imported on first use, so `import dpo_nb` stays instant
    'DPOConfig': 'train.config',
    'DPOTrainer': 'api',  # with the doctor, and in a notebook a view
    'DataCollatorForPreference': 'data.collator',
    'DataCollatorForVisionPreference': 'data.vision',
    'LiveView': 'diagnose.live',
    'score': 'diagnose.scoring',
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
