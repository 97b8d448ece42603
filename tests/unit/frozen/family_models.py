"""Small models of every family of autoencoders and text encoders, with random weights, saved as their users get them."""

import json
from pathlib import Path

import torch

from tests.unit.frozen.small_models import save_clip, save_vae

TOKENS = 12
WORDS = ["<pad>", "</s>", "<s>", "<unk>", "a", "photo", "of", "red", "green", "blue", "cat", "dog", "!"]


def save_tiny_autoencoder(folder: Path, **config) -> Path:
    """TAESD's kind: no posterior; divides sides by 4."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(3)
    widths = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
    blocks = {"num_encoder_blocks": (1,) * 3, "num_decoder_blocks": (1,) * 3}
    AutoencoderTiny(**widths, **blocks, latent_channels=4, **config).save_pretrained(folder)
    return folder


def save_deep_autoencoder(folder: Path, **config) -> Path:
    """DC-AE's kind: 32 channels, no posterior; divides sides by 8."""
    from diffusers import AutoencoderDC

    torch.manual_seed(4)
    stages = {
        "block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",),
        "block_out_channels": (8, 16, 16, 32),
        "layers_per_block": (1,) * 4,
        "qkv_multiscales": ((), (), (), (5,)),
    }
    both = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in stages.items()}
    AutoencoderDC(**both, attention_head_dim=8, latent_channels=32, **config).save_pretrained(folder)
    return folder


AUTOENCODERS = {
    "sd": save_vae,
    "sd3": lambda folder: save_vae(folder, channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False),
    "low_range": lambda folder: save_vae(folder, force_upcast=False),
    "tiny": save_tiny_autoencoder,
    "deep": lambda folder: save_deep_autoencoder(folder, scaling_factor=0.41407),
}


def tokenizer(start: bool = False, end: bool = True):
    """One token a word, with the special tokens that a family sets around a caption."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if start or end:
        single = ["<s>"] * start + ["$A"] + ["</s>"] * end
        raw.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 2), ("</s>", 1)])
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": len(WORDS)}
IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def save_siglip(folder: Path, version: str = "Siglip") -> Path:
    """A text tower of SigLIP or SigLIP 2."""
    import transformers

    torch.manual_seed(5)
    config = getattr(transformers, f"{version}TextConfig")(**SIZE, max_position_embeddings=TOKENS, projection_size=16, **IDS)
    getattr(transformers, f"{version}TextModel")(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_t5(folder: Path, name: str = "T5", whole: bool = False) -> Path:
    """An encoder of T5 v1.1's kind, or the whole model with its decoder."""
    import transformers

    torch.manual_seed(6)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": len(WORDS)}
    config = getattr(transformers, f"{name}Config")(**sizes, feed_forward_proj="gated-gelu", **IDS, decoder_start_token_id=0)
    made = f"{name}ForConditionalGeneration" if whole else f"{name}EncoderModel"
    getattr(transformers, made)(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_qwen(folder: Path) -> Path:
    """A causal language model whose tokenizer sets nothing around a caption: every byte is a token."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    save_decoder(folder, vocab_size=260)
    letters = sorted(ByteLevel.alphabet())
    Qwen2Tokenizer(vocab={piece: i for i, piece in enumerate([*letters, "<|endoftext|>"])}, merges=[]).save_pretrained(folder)
    return folder


def save_decoder(folder: Path, name: str = "Qwen2", start: bool = False, pad: bool = True, **sizes) -> Path:
    """A causal language model with one token a word, and a start token before a caption or nothing."""
    import transformers

    torch.manual_seed(7)
    heads = {"num_key_value_heads": 1, "head_dim": 8}
    config = getattr(transformers, f"{name}Config")(**{**SIZE, **sizes}, **heads, max_position_embeddings=32, **IDS)
    kind = "Gemma3ForCausalLM" if name == "Gemma3Text" else f"{name}ForCausalLM"
    getattr(transformers, kind)(config).save_pretrained(folder)
    words = tokenizer(start=start, end=False)
    if not pad:
        words.pad_token = None
    words.save_pretrained(folder)
    return folder


OPEN_CLIP = {
    "embed_dim": 8,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 8, "head_width": 4, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def open_clip_model(**text):
    """A CLIP of open_clip, as ViT-H/14-378 is one."""
    from open_clip import CLIP

    torch.manual_seed(8)
    return CLIP(**{**OPEN_CLIP, "text_cfg": {**OPEN_CLIP["text_cfg"], **text}}).eval()


def save_open_clip(folder: Path, safe: bool = True, **text) -> Path:
    """Its config and weights under the names that the hub's checkpoints have."""
    from safetensors.torch import save_model

    model = open_clip_model(**{key: value for key, value in text.items() if key not in ("hf_tokenizer_name", "tokenizer_kwargs")})
    folder.mkdir(parents=True)
    config = {**OPEN_CLIP, "text_cfg": {**OPEN_CLIP["text_cfg"], **text}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    if safe:
        save_model(model, str(folder / "open_clip_model.safetensors"))
    else:
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


TEXT_ENCODERS = {
    "clip": save_clip,
    "open_clip": save_open_clip,
    "siglip": save_siglip,
    "siglip2": lambda folder: save_siglip(folder, "Siglip2"),
    "t5": save_t5,
    "umt5": lambda folder: save_t5(folder, "UMT5"),
    "qwen2": save_qwen,
    "gemma3": lambda folder: save_decoder(folder, "Gemma3Text", start=True),
    "smollm3": lambda folder: save_decoder(folder, "SmolLM3"),
}
