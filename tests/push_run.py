"Trains one step and pushes to the hub at HF_ENDPOINT; run by tests/test_options.py."
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_nb import DPOConfig, DPOTrainer
from dpo_nb.toy import load_toy_pairs, load_toy_tokenizer

tok = load_toy_tokenizer()
model = AutoModelForCausalLM.from_config(AutoConfig.for_model('llama', vocab_size=len(tok), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1))
args = DPOConfig(sys.argv[1], hub_model_id='me/mine', max_steps=1, per_device_train_batch_size=2, bf16=False, use_cpu=True, report_to='none', disable_tqdm=True, save_strategy='no')
t = DPOTrainer(model, args=args, train_dataset=load_toy_pairs()['train'].select(range(4)), processing_class=tok)
t.train()
t.create_model_card(model_name='mine', dataset_name='toy')
t.push_to_hub()
