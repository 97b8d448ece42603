import math
from dataclasses import replace

import pytest
import torch

from pipeline.model import PRESETS, MicroDiT
from pipeline.model.init import rule_of


@pytest.fixture(scope="module")
def config():
    return replace(PRESETS["small"], dim=128, depth=4, mixer_dim=96, multiple_of=32, head_dim=32)


@pytest.fixture(scope="module")
def weights(config):
    return dict(MicroDiT(config, seed=3).named_parameters())


def std(tensor):
    return float(tensor.detach().std())


def test_same_seed_same_weights_whatever_else_is_drawn(config):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = MicroDiT(config, seed=1).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    again = MicroDiT(config, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = MicroDiT(config, seed=2).state_dict()
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_every_value_is_written(config):
    model = MicroDiT(config)
    for tensor in model.state_dict().values():
        tensor.fill_(math.nan)
    model.init_weights(0)
    assert not any(tensor.isnan().any() for tensor in model.state_dict().values())


def test_zeros(weights):
    zero = {name for name, value in weights.items() if not value.any()}
    assert {name for name in weights if "adaLN" in name or name.startswith("final_layer.linear")} <= zero
    assert {"y_emb_preprocess.attn.proj.weight", "y_emb_preprocess.mlp.w3.weight"} <= zero
    assert {name for name in weights if name.endswith("bias")} - zero == {"x_embedder.proj.bias"}
    assert all(
        "adaLN" in n or n.startswith("final_layer.linear") or n.startswith("y_emb_preprocess") or n.endswith("bias") for n in zero
    )


def test_norms_start_at_one(weights):
    ones = [name for name, value in weights.items() if (value == 1).all()]
    assert ones == [name for name in weights if rule_of(name) == "one"]
    assert len(ones) == 2 + 2 + 3 * 6 + 3 + 1


@pytest.mark.parametrize(
    "name",
    [
        "t_embedder.mlp.0.weight",
        "t_embedder.mlp.2.weight",
        "y_embedder.y_proj.fc1.weight",
        "pooled_y_emb_process.fc2.weight",
        "y_emb_preprocess.attn.qkv.weight",
        "y_emb_preprocess.mlp.w1.weight",
        "y_emb_preprocess.mlp.w2.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.2.cross_attn.q_linear.weight",
        "patch_mixer.0.cross_attn.kv_linear.weight",
        "blocks.3.mlp.w1.weight",
        "blocks.1.mlp.w1",
        "patch_mixer.1.mlp.w1",
    ],
)
def test_two_hundredths(weights, name):
    assert std(weights[name]) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("name", ["blocks.1.mlp.gate.weight", "patch_mixer.1.mlp.gate.weight"])
def test_gates(weights, name):
    assert std(weights[name]) == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("blocks.0.attn.proj.weight", 1),
        ("blocks.1.cross_attn.proj.weight", 2),
        ("blocks.1.mlp.w2", 2),
        ("blocks.2.mlp.w2.weight", 3),
        ("blocks.3.mlp.w3.weight", 4),
        ("patch_mixer.0.attn.proj.weight", 4),
        ("patch_mixer.0.mlp.w3.weight", 4),
        ("patch_mixer.1.mlp.w2", 4),
    ],
)
def test_output_projections_shrink_with_depth(weights, name, layers):
    assert std(weights[name]) == pytest.approx(0.02 / math.sqrt(2 * layers), rel=0.05)


@pytest.mark.parametrize(
    "name",
    ["patch_mixer_map_xin.1.weight", "patch_mixer_map_y.1.weight", "patch_mixer_map_xout.1.weight", "x_embedder.proj.weight"],
)
def test_xavier(weights, name):
    fan_out, fan_in = weights[name].flatten(1).shape
    bound = math.sqrt(6 / (fan_in + fan_out))
    assert std(weights[name]) == pytest.approx(bound / math.sqrt(3), rel=0.08)
    assert weights[name].abs().max() <= bound


def test_patch_bias_is_pytorch_default(weights, config):
    bias = weights["x_embedder.proj.bias"]
    assert 0 < bias.abs().max() <= 1 / math.sqrt(config.patch_channels)
