"""A small run with random weights: two stages, and the model of the second."""

import json

import pytest
import torch
from safetensors.torch import save_file

from pipeline.diffusion import EDM
from pipeline.export.trained import run
from pipeline.model import MicroDiT, MicroDiTConfig

FROZEN = {"vae": "embedded:vae", "text_encoder": "embedded:clip"}  # 8 px a latent pixel, 24 tokens of 64 values
STAGES = {"low": 2, "high": 4}  # side of their latents
SAMPLER = {"steps": 3, "guidance": 1.5, "method": "heun", "interval": None}


@pytest.fixture(scope="session")
def write_stage():
    """Writes the folder of a finished stage."""
    return _write_stage


def _write_stage(folder, side, number, **changes):
    config = MicroDiTConfig(
        input_size=side, patch_size=1, in_channels=4, dim=32, depth=2, head_dim=16, multiple_of=16, caption_channels=64,
        caption_length=24, mixer_depth=1, mixer_dim=32, num_experts=0,
    )  # fmt: skip
    random = torch.Generator().manual_seed(number)
    state = {name: value + 0.2 * torch.randn(value.shape, generator=random) * (name not in ("pos_embed", "mask_token"))
             for name, value in MicroDiT(config, seed=number).state_dict().items()}  # fmt: skip
    summary = {
        "stage": folder.name, "fingerprint": f"{number:012d}", "images_seen": 640, "images_seen_total": 640 * number,
        "model": config.to_dict(), "diffusion": EDM().to_dict(), "git_commit": None,
        "config": {"stage": {"px": 8 * side}, "text_tokens": None}, **FROZEN, **changes,
    }  # fmt: skip
    folder.mkdir(parents=True)
    save_file(state, folder / "ema.safetensors")
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """results/ with train/low, train/high and model."""
    folder = tmp_path_factory.mktemp("run") / "results"
    for number, (name, side) in enumerate(STAGES.items(), 1):
        _write_stage(folder / "train" / name, side, number)
    run(folder / "train" / "high", folder / "model", SAMPLER)
    return folder
