"""Sizes that are counted from the configuration, against those of the network itself."""

import pytest

from pipeline.architecture import PRESETS, parameters
from pipeline.model import MicroDiTConfig, parameter_count

SMALL = {"dim": 64, "depth": 3, "head_dim": 16, "mixer_depth": 2, "mixer_dim": 32, "caption_channels": 24}
ODD = [
    {**SMALL, "mixer_dim": 64},  # tokens are not mapped to another width
    {**SMALL, "mixer_depth": 0, "mask_mode": "naive"},
    {**SMALL, "num_experts": 0, "patch_size": 4, "in_channels": 16},
    {**SMALL, "depth": 1, "qkv_ratio": (1.0, 1.0), "experts_every_n": 1},
]


@pytest.mark.parametrize("config", [*PRESETS.values(), *(MicroDiTConfig(**numbers) for numbers in ODD)])
def test_parameters_are_those_of_the_network(config):
    assert parameters(config) == parameter_count(config)
