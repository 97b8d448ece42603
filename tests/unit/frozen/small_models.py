"""Small real models with random weights, saved as their users get them: used by the tests of all steps with models."""

from pathlib import Path

import torch

torch.set_num_threads(1)  # for models this small, threads only wait for each other

END = "</w>"


def save_vae(folder: Path, channels: int = 4, **config) -> Path:
    """A diffusers AutoencoderKL that divides sides by 4."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    AutoencoderKL(**blocks, block_out_channels=(8, 8, 16), latent_channels=channels, norm_num_groups=4, **config).save_pretrained(
        folder
    )
    return folder


def clip_tokenizer(tokens: int = 12):
    """Byte-level CLIP tokens without merges: every character is a token."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*alphabet, *(letter + END for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=tokens)


def save_clip(folder: Path, tokens: int = 12, tower: str = "both") -> Path:
    """A transformers CLIPModel (or only its text tower) with tokenizer and image processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel

    torch.manual_seed(1)
    tokenizer = clip_tokenizer(tokens)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 8}
    special = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    text = {**size, **special, "vocab_size": len(tokenizer), "max_position_embeddings": tokens}
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 8}, projection_dim=8)
    model = CLIPModel(config) if tower == "both" else CLIPTextModel(config.text_config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return folder


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>"]
WORDS = [*SPECIAL, "a", "photo", "of", "red", "green", "blue", "Describe", "this", "in", "one"]


def word_tokenizer():
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special, extra_special_tokens={"image_token": "<image>"})


TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_pair(folder: Path) -> Path:
    """A VisionEncoderDecoderModel: ViT and GPT-2."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig, ViTImageProcessor

    torch.manual_seed(2)
    encoder = ViTConfig(**TOWER, image_size=32, patch_size=8)
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    decoder = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=10, vocab_size=len(WORDS), initializer_range=0.5, **special)
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    model.generation_config.update(decoder_start_token_id=2, **special)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_blip(folder: Path) -> Path:
    """A BLIP captioner: image-text-to-text without a prompt."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    torch.manual_seed(3)
    text = {
        **TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 10, "bos_token_id": 2, "sep_token_id": 3,
        "eos_token_id": 3, "pad_token_id": 0, "encoder_hidden_size": 16, "initializer_range": 0.5,
    }  # fmt: skip
    config = BlipConfig(text_config=text, vision_config={**TOWER, "image_size": 32, "patch_size": 8})
    BlipForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, do_lower_case=False)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


CHAT = (
    "{% for m in messages %}[CLS] {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}a photo"
)


def save_llava(folder: Path) -> Path:
    """A LLaVA: decoder-only, with a chat template."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(4)
    vision = CLIPVisionConfig(**TOWER, image_size=32, patch_size=8)
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = LlamaConfig(**TOWER, vocab_size=len(WORDS), max_position_embeddings=40, initializer_range=0.5, **special)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=4))
    model.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square), word_tokenizer(), patch_size=8,
        vision_feature_select_strategy="default", chat_template=CHAT, num_additional_image_tokens=1,
    )  # fmt: skip
    processor.save_pretrained(folder)
    return folder
