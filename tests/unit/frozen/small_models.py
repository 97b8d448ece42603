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


def save_clip(folder: Path, tokens: int = 12, tower: str = "both", width: int = 16) -> Path:
    """A transformers CLIPModel (or only its text tower) with tokenizer and image processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel

    torch.manual_seed(1)
    tokenizer = clip_tokenizer(tokens)
    size = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 8}
    special = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    text = {**size, **special, "vocab_size": len(tokenizer), "max_position_embeddings": tokens}
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 8}, projection_dim=8)
    model = CLIPModel(config) if tower == "both" else CLIPTextModel(config.text_config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return folder
