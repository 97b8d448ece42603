"""A small model with random weights of every family of captioners, saved as its users get it: config, weights, processor,
tokenizer and, where it has one, a chat template. The words of all are WORDS."""

from pathlib import Path

import torch

torch.set_num_threads(1)  # for models this small, threads only wait for each other

IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
IMAGE = "<image>"
QWEN = ["<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>"]
IDEFICS = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
TILES = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
SPOKEN = (
    "a the one two red green blue small large dog cat house tree photo of on under with and is are stands . ! ? describe What "
    "Describe this image sentence long in USER: ASSISTANT: caption en [INST] [/INST] user assistant does"
)
WORDS = list(dict.fromkeys([*SPECIAL, IMAGE, *QWEN, *IDEFICS, *TILES, *SPOKEN.split()]))

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
# Random weights this large make a model say different things of different images.
WILD = {"initializer_range": 0.5}
SQUARE = {"height": 32, "width": 32}
CHAT = (
    "{% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def tokenizer(**special: str):
    """One token a word; `special` names further tokens that the family's processor looks for."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **named, extra_special_tokens=special or {"image_token": IMAGE})


def bert_tokenizer():
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, do_lower_case=False)


def llama():
    from transformers import LlamaConfig

    return LlamaConfig(**TOWER, **WILD, **IDS, vocab_size=len(WORDS), max_position_embeddings=256)


def clip_tower():
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(**TOWER, image_size=32, patch_size=8)


def clip_pixels():
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)


def save(folder: Path, model: torch.nn.Module, *parts) -> Path:
    for part in (model, *parts):
        part.save_pretrained(folder)
    return folder


def save_pair(folder: Path) -> Path:
    """VisionEncoderDecoderModel: ViT and GPT-2."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig, ViTImageProcessor

    torch.manual_seed(2)
    encoder = ViTConfig(**TOWER, **WILD, image_size=32, patch_size=8)
    decoder = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=10, vocab_size=len(WORDS), **WILD, **IDS)
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    model.generation_config.update(decoder_start_token_id=2, **IDS)
    return save(folder, model, tokenizer(), ViTImageProcessor(size=SQUARE))


def save_blip(folder: Path) -> Path:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    torch.manual_seed(3)
    text = {**TOWER, **WILD, **IDS, "vocab_size": len(WORDS), "max_position_embeddings": 20, "sep_token_id": 3}
    vision = {**TOWER, **WILD, "image_size": 32, "patch_size": 8}
    model = BlipForConditionalGeneration(BlipConfig(text_config={**text, "encoder_hidden_size": 32}, vision_config=vision))
    return save(folder, model, BlipProcessor(BlipImageProcessor(size=SQUARE), bert_tokenizer()))


def save_blip2(folder: Path) -> Path:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor, OPTConfig

    torch.manual_seed(4)
    text = OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=32, init_std=0.5,
        max_position_embeddings=64, vocab_size=len(WORDS), **IDS,
    )  # fmt: skip
    config = Blip2Config(
        vision_config={**TOWER, **WILD, "image_size": 32, "patch_size": 8},
        qformer_config={**TOWER, **WILD, "encoder_hidden_size": 32, "vocab_size": len(WORDS)},
        text_config=text.to_dict(), num_query_tokens=4, image_token_index=WORDS.index(IMAGE),
    )  # fmt: skip
    processor = Blip2Processor(BlipImageProcessor(size=SQUARE), tokenizer(), num_query_tokens=4)
    return save(folder, Blip2ForConditionalGeneration(config), processor)


def save_git(folder: Path) -> Path:
    from transformers import GitConfig, GitForCausalLM, GitProcessor

    torch.manual_seed(5)
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    config = GitConfig(vision_config=vision, **TOWER, **WILD, **IDS, vocab_size=len(WORDS), max_position_embeddings=64)
    return save(folder, GitForCausalLM(config), GitProcessor(clip_pixels(), bert_tokenizer()))


def save_llava(folder: Path, template: str | None = CHAT.replace("IMAGE", IMAGE)) -> Path:
    """LLaVA-1.5: CLIP and Llama."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    torch.manual_seed(6)
    config = LlavaConfig(vision_config=clip_tower(), text_config=llama(), image_token_index=WORDS.index(IMAGE))
    options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = LlavaProcessor(clip_pixels(), tokenizer(), chat_template=template, **options)
    return save(folder, LlavaForConditionalGeneration(config), processor)


PINPOINTS = [[32, 64], [64, 32], [64, 64]]  # height and width of the grids that an image is cut into


def save_llava_next(folder: Path, template: str | None = CHAT.replace("IMAGE", IMAGE)) -> Path:
    """LLaVA-1.6 (LLaVA-NeXT): CLIP and Mistral; images are cut into tiles, so that prompts differ in length."""
    from transformers import LlavaNextConfig, LlavaNextImageProcessor, LlavaNextProcessor, MistralConfig
    from transformers import LlavaNextForConditionalGeneration as Model

    torch.manual_seed(7)
    text = MistralConfig(**TOWER, **WILD, **IDS, num_key_value_heads=2, vocab_size=len(WORDS), max_position_embeddings=512)
    image = {"image_token_index": WORDS.index(IMAGE), "image_grid_pinpoints": PINPOINTS}
    model = Model(LlavaNextConfig(vision_config=clip_tower(), text_config=text, **image))
    pixels = LlavaNextImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS)
    options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return save(folder, model, LlavaNextProcessor(pixels, tokenizer(), chat_template=template, **options))


def save_florence(folder: Path) -> Path:
    """Florence-2: DaViT and BART."""
    from transformers import BartConfig, Florence2Config, Florence2ForConditionalGeneration, Florence2Processor

    torch.manual_seed(8)
    vision = {
        "depths": [1, 1, 1, 1], "embed_dim": [8, 16, 32, 64], "num_heads": [1, 2, 4, 8], "num_groups": [1, 2, 4, 8],
        "window_size": 4, "projection_dim": 32, "initializer_range": 0.3,
    }  # fmt: skip
    text = BartConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=len(WORDS), max_position_embeddings=64, init_std=0.5,
        decoder_start_token_id=3, forced_eos_token_id=3, **IDS,
    )  # fmt: skip
    config = Florence2Config(vision_config=vision, text_config=text, image_token_id=WORDS.index(IMAGE), **IDS)
    model = Florence2ForConditionalGeneration(config)
    model.generation_config.update(decoder_start_token_id=3, forced_bos_token_id=2, num_beams=3, no_repeat_ngram_size=3, **IDS)
    pixels = clip_pixels()
    pixels.image_seq_length = 2
    processor = Florence2Processor(pixels, tokenizer(), post_processor_config={"pure_text": {}})
    return save(folder, model, processor)


QWEN_CHAT = CHAT.replace("IMAGE", "<|vision_start|> <|image_pad|> <|vision_end|>")


def save_qwen2_vl(folder: Path) -> Path:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    torch.manual_seed(9)
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2}
    return _save_qwen(folder, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, vision)


def save_qwen2_5_vl(folder: Path) -> Path:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    torch.manual_seed(10)
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 8, "out_hidden_size": 32,
        "window_size": 32, "fullatt_block_indexes": [1],
    }  # fmt: skip
    return _save_qwen(folder, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, vision)


def _save_qwen(folder: Path, config, cls, processor, vision: dict) -> Path:
    """As the authors' settings: two end tokens, of which one fills up too, and a penalty on repetition."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    text = {
        **TOWER, **WILD, **IDS, "num_key_value_heads": 2, "vocab_size": len(WORDS), "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    }  # fmt: skip
    tokens = {name: WORDS.index(f"<|{text}|>") for name, text in (
        ("image_token_id", "image_pad"), ("video_token_id", "video_pad"),
        ("vision_start_token_id", "vision_start"), ("vision_end_token_id", "vision_end"),
    )}  # fmt: skip
    model = cls(config(vision_config=vision, text_config=text, **tokens))
    ends = [WORDS.index("<|im_end|>"), 3]
    model.generation_config.update(do_sample=True, temperature=1e-6, repetition_penalty=1.05, eos_token_id=ends, pad_token_id=3)
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    shape = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    words = tokenizer(image_token="<|image_pad|>", video_token="<|video_pad|>", end_token="<|im_end|>")
    parts = Qwen2VLImageProcessor(**shape), words, Qwen2VLVideoProcessor(**shape)
    return save(folder, model, processor(*parts, chat_template=QWEN_CHAT))


def save_idefics3(folder: Path) -> Path:
    """Idefics3, what SmolVLM is made of: images are cut into tiles."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    torch.manual_seed(11)
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    config = Idefics3Config(vision_config=vision, text_config=llama().to_dict(), image_token_id=WORDS.index(IMAGE))
    pixels = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(pixels, tokenizer(), image_seq_len=4, chat_template=CHAT.replace("IMAGE", IMAGE))
    return save(folder, Idefics3ForConditionalGeneration(config), processor)


def save_paligemma(folder: Path) -> Path:
    from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaProcessor, SiglipImageProcessor, SiglipVisionConfig
    from transformers import PaliGemmaForConditionalGeneration as Model

    torch.manual_seed(12)
    vision = SiglipVisionConfig(**TOWER, image_size=32, patch_size=8, projection_dim=32, vision_use_head=False)
    heads = {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256}
    text = GemmaConfig(**TOWER, **WILD, **IDS, **heads, vocab_size=len(WORDS))
    sizes = {"projection_dim": 32, "hidden_size": 32, "vocab_size": len(WORDS), "image_token_index": WORDS.index(IMAGE)}
    pixels = SiglipImageProcessor(size=SQUARE)
    pixels.image_seq_length = 16
    model = Model(PaliGemmaConfig(vision_config=vision, text_config=text, **sizes))
    return save(folder, model, PaliGemmaProcessor(pixels, tokenizer()))


FAMILIES = {
    "pair": save_pair, "blip": save_blip, "blip-2": save_blip2, "git": save_git, "llava": save_llava,
    "llava-next": save_llava_next, "florence-2": save_florence, "qwen2-vl": save_qwen2_vl, "qwen2.5-vl": save_qwen2_5_vl,
    "idefics3": save_idefics3, "paligemma": save_paligemma,
}  # fmt: skip
