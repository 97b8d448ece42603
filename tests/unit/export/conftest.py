"""A small trained stage with small frozen models, made with random weights."""

import json

import pytest
import torch
from safetensors.torch import save_file

from pipeline.diffusion import EDM
from pipeline.model import MicroDiT, MicroDiTConfig

TOKENS, WIDTH, CHANNELS, FACTOR, SIDE = 12, 16, 4, 4, 4
EDM_USED = EDM(sigma_data=0.7, p_mean=0.0)


@pytest.fixture(scope="session")
def small_config():
    return MicroDiTConfig(
        input_size=SIDE, patch_size=1, in_channels=CHANNELS, dim=32, depth=2, head_dim=16, multiple_of=16,
        caption_channels=WIDTH, caption_length=TOKENS, mixer_depth=1, mixer_dim=32, num_experts=0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def random_state(small_config):
    """Weights of a network whose every output depends on its every input."""
    generator = torch.Generator().manual_seed(1)
    state = MicroDiT(small_config, seed=1).state_dict()
    return {name: value + 0.2 * torch.randn(value.shape, generator=generator) * (name not in ("pos_embed", "mask_token"))
            for name, value in state.items()}  # fmt: skip


@pytest.fixture(scope="session")
def frozen_models(tmp_path_factory):
    """References of a saved AutoencoderKL and a saved CLIP text tower with its tokenizer."""
    from diffusers import AutoencoderKL
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("frozen")
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "latent_channels": CHANNELS, "layers_per_block": 1,
              "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}  # fmt: skip
    AutoencoderKL(**blocks).save_pretrained(folder / "vae")
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=TOKENS)
    tokenizer.save_pretrained(folder / "text")
    tower = CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=TOKENS, bos_token_id=len(pieces) - 2, eos_token_id=len(pieces) - 1, pad_token_id=len(pieces) - 1,
    )  # fmt: skip
    CLIPTextModel(tower).save_pretrained(folder / "text")
    return str(folder / "vae"), str(folder / "text")


@pytest.fixture
def stage_folder(tmp_path, small_config, random_state):
    """results/train/{stage} as training leaves it, its plain weights other than its averaged ones."""
    folder = tmp_path / "train" / "high"
    folder.mkdir(parents=True)
    save_file(random_state, folder / "ema.safetensors")
    save_file({name: value * 0 for name, value in random_state.items()}, folder / "model.safetensors")
    summary = {
        "stage": "high", "fingerprint": "abcdef012345", "images_seen": 640, "images_seen_total": 1000,
        "model": small_config.to_dict(), "diffusion": EDM_USED.to_dict(), "vae": "embedded:vae",
        "text_encoder": "embedded:clip", "config": {"stage": {"px": 16}, "text_tokens": None}, "git_commit": None,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
