"Tiny random vision-language models with real processors, made here without a hub; only PIL's image processors, so no torchvision."
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor, Idefics3Config, Idefics3ForConditionalGeneration,
                          Idefics3Processor, LlavaConfig, LlavaForConditionalGeneration, LlavaNextConfig, LlavaNextForConditionalGeneration,
                          LlavaNextProcessor, LlavaProcessor, PreTrainedTokenizerFast, ProcessorMixin, Qwen2_5_VLConfig,
                          Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2VLConfig, Qwen2VLForConditionalGeneration,
                          Qwen2VLProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, SmolVLMConfig,
                          SmolVLMForConditionalGeneration)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

TEXTS = ["What is on the picture? A red circle on the left, a blue square on the right.", "Which colour has the triangle? It is green.",
         "How many shapes do you see? Two of them, and both are yellow. You are a careful assistant."]
CHAT = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}{% if p['type'] == 'image' %}IMAGE{% else %}{{ p['text'] }}"
        "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")  # only blocks, as LLaVA's
TEXT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)
SEE = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)


def tokenizer(*special, **named):
    "A byte-level tokenizer of our own sentences, with the family's special tokens."
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    first = ['<|end|>', '<|pad|>', '<|im_start|>', '<|im_end|>', *special, *named.values()]
    t.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=first, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                                     show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=t, eos_token='<|im_end|>', pad_token='<|pad|>', extra_special_tokens=named)


def text(tok, **more):
    return TEXT | dict(vocab_size=len(tok), pad_token_id=tok.pad_token_id, eos_token_id=tok.eos_token_id, bos_token_id=None) | more


def images_only(family):
    "A processor class without its half for videos, which needs torchvision."
    class ImagesOnly(family):
        def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
            for name, token in dict(image='<|image_pad|>', video='<|video_pad|>', vision_start='<|vision_start|>', vision_end='<|vision_end|>').items():
                setattr(self, f'{name}_token', token)
                setattr(self, f'{name}_token_id', tokenizer.convert_tokens_to_ids(token))
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
    return ImagesOnly


def qwen(Processor, Config, Model, see, patch=14, **rope):
    tok = tokenizer('<|image_pad|>', '<|video_pad|>', '<|vision_start|>', '<|vision_end|>')
    eye = Qwen2VLImageProcessorPil(size=dict(shortest_edge=4*patch*patch, longest_edge=36*patch*patch), patch_size=patch, merge_size=2)
    proc = images_only(Processor)(eye, tok, chat_template=CHAT.replace('IMAGE', '<|vision_start|><|image_pad|><|vision_end|>'))
    ids = dict(image_token_id=proc.image_token_id, video_token_id=proc.video_token_id, vision_start_token_id=proc.vision_start_token_id,
               vision_end_token_id=proc.vision_end_token_id)
    rope = dict(rope_parameters=dict(rope_type='default', rope_theta=1e4, mrope_section=[1, 1, 2], **rope))
    return proc, Model(Config(text_config=text(tok, **rope), vision_config=see | dict(patch_size=patch, spatial_merge_size=2), **ids))


def qwen2_vl():
    return qwen(Qwen2VLProcessor, Qwen2VLConfig, Qwen2VLForConditionalGeneration, dict(depth=2, embed_dim=24, hidden_size=32, num_heads=2, mlp_ratio=2))


def qwen2_5_vl():
    see = dict(depth=2, hidden_size=24, out_hidden_size=32, intermediate_size=32, num_heads=2, window_size=56, fullatt_block_indexes=[1])
    return qwen(Qwen2_5_VLProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, see)


def qwen3_vl():
    see = dict(depth=2, hidden_size=24, out_hidden_size=32, intermediate_size=32, num_heads=2, num_position_embeddings=16, deepstack_visual_indexes=[0])
    return qwen(Qwen3VLProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration, see, patch=16, mrope_interleaved=True)


def llava():
    tok = tokenizer(image_token='<image>')
    eye = CLIPImageProcessorPil(size=dict(shortest_edge=28), crop_size=dict(height=28, width=28))
    proc = LlavaProcessor(eye, tok, patch_size=14, vision_feature_select_strategy='default', num_additional_image_tokens=1,
                          chat_template=CHAT.replace('IMAGE', '<image>\n'))
    c = LlavaConfig(text_config=text(tok) | dict(model_type='llama'), vision_config=SEE | dict(model_type='clip_vision_model'),
                    image_token_id=tok.image_token_id, vision_feature_layer=-1)
    return proc, LlavaForConditionalGeneration(c)


def llava_next():
    tok = tokenizer(image_token='<image>')
    grid = [[28, 56], [56, 28], [56, 56]]
    eye = LlavaNextImageProcessorPil(size=dict(shortest_edge=28), crop_size=dict(height=28, width=28), image_grid_pinpoints=grid)
    proc = LlavaNextProcessor(eye, tok, patch_size=14, vision_feature_select_strategy='default', num_additional_image_tokens=1,
                              chat_template=CHAT.replace('IMAGE', '<image>\n'))
    c = LlavaNextConfig(text_config=text(tok) | dict(model_type='llama'), vision_config=SEE | dict(model_type='clip_vision_model'),
                        image_grid_pinpoints=grid, image_token_id=tok.image_token_id, vision_feature_layer=-1)
    return proc, LlavaNextForConditionalGeneration(c)


def idefics3(Config=Idefics3Config, Model=Idefics3ForConditionalGeneration):
    tok = tokenizer('<end_of_utterance>', image_token='<image>', fake_image_token='<fake_token_around_image>', global_image_token='<global-img>',
                    end_of_utterance_token='<end_of_utterance>')
    eye = Idefics3ImageProcessorPil(size=dict(longest_edge=56), max_image_size=dict(longest_edge=28))
    proc = Idefics3Processor(eye, tok, image_seq_len=1, chat_template=CHAT.replace('IMAGE', '<image>'))
    c = Config(text_config=text(tok) | dict(model_type='llama'), vision_config=SEE, image_token_id=tok.image_token_id, scale_factor=2)
    return proc, Model(c)


def smolvlm(): return idefics3(SmolVLMConfig, SmolVLMForConditionalGeneration)


def gemma3():
    tok = tokenizer(boi_token='<start_of_image>', eoi_token='<end_of_image>', image_token='<image_soft_token>')
    proc = Gemma3Processor(Gemma3ImageProcessorPil(size=dict(height=28, width=28)), tok, image_seq_length=4,
                           chat_template=CHAT.replace('IMAGE', '<start_of_image>'))
    c = Gemma3Config(text_config=text(tok, head_dim=8, sliding_window=16), vision_config=SEE, mm_tokens_per_image=4, image_token_id=tok.image_token_id,
                     boi_token_id=tok.boi_token_id, eoi_token_id=tok.eoi_token_id)
    model = Gemma3ForConditionalGeneration(c)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=.1)  # zero otherwise, and the eyes shut
    return proc, model


FAMILIES = dict(qwen2_vl=qwen2_vl, qwen2_5_vl=qwen2_5_vl, qwen3_vl=qwen3_vl, llava=llava, llava_next=llava_next, idefics3=idefics3, smolvlm=smolvlm,
                gemma3=gemma3)


def tiny(family, seed=0):
    "Processor and random model of a family, always the same."
    torch.manual_seed(seed)
    return FAMILIES[family]()
