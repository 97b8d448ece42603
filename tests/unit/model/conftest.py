"""The official code's own numbers: tests/data/microdit_reference, in two files to keep each under 2 MB."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.diffusion import EDM
from pipeline.model import MicroDiT, MicroDiTConfig

DATA = Path(__file__).parents[2] / "data"


class Reference:
    """A small random model, inputs, and what the official code computed from them in float32."""

    def __init__(self) -> None:
        values: dict[str, Tensor] = {}
        for path in sorted(DATA.glob("microdit_reference-*.safetensors")):
            values |= load_file(path)
        self.state, self.inputs, self.outputs = (
            {name.removeprefix(kind): value for name, value in values.items() if name.startswith(kind)}
            for kind in ("state.", "in.", "out.")
        )
        self.card = json.loads((DATA / "microdit_reference.json").read_text())
        self.edm = EDM(**{key.lower(): value for key, value in self.card["edm"].items()})
        self.config = reference_config(self.card["config"])
        self.model = MicroDiT.from_state(self.config, dict(self.state)).requires_grad_(False)

    def check(self, name: str, found: Tensor, tolerance: float = 2e-6) -> None:
        expected = self.outputs[name].reshape(found.shape)
        error = float((found - expected).norm() / expected.norm())
        assert error < tolerance, f"{name}: relative error {error:.1e}"


def reference_config(card: dict) -> MicroDiTConfig:
    same = (
        "input_size",
        "patch_size",
        "in_channels",
        "dim",
        "depth",
        "head_dim",
        "multiple_of",
        "caption_channels",
        "pos_interp_scale",
        "norm_eps",
        "num_experts",
        "expert_capacity",
        "experts_every_n",
    )
    return MicroDiTConfig(
        **{name: card[name] for name in same},
        qkv_ratio=(card["qkv_multipliers"][0], card["qkv_multipliers"][-1]),
        ffn_ratio=(card["ffn_multipliers"][0], card["ffn_multipliers"][-1]),
        mixer_depth=card["patch_mixer_depth"],
        mixer_dim=card["patch_mixer_dim"],
        mixer_qkv_ratio=card["patch_mixer_qkv_ratio"],
        mixer_ffn_ratio=card["patch_mixer_mlp_ratio"],
        caption_length=7,
    )


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference()


@pytest.fixture
def tiny() -> MicroDiTConfig:
    """The smallest model that has every part."""
    return MicroDiTConfig(
        input_size=4,
        patch_size=1,
        dim=16,
        depth=3,
        head_dim=4,
        multiple_of=8,
        caption_channels=6,
        caption_length=5,
        mixer_depth=2,
        mixer_dim=8,
        num_experts=4,
    )


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
