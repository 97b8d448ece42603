"""Initial weights, chosen by parameter name (arXiv 2407.15811, official code).

All values come from one generator on the CPU in the order of the model's parameters, so a seed means
the same weights whatever the device and whatever else has drawn random numbers.
"""

import math
import re

import torch
from torch import Tensor, nn

from pipeline.architecture.config import MicroDiTConfig

STD = 0.02
CUTOFF = 2.0  # absolute, as in the official code: a hundred standard deviations out

# The first pattern that matches a parameter's name decides. "scaled" means divided by sqrt(2·layers).
RULES: list[tuple[str, str]] = [
    (r"x_embedder\.proj\.bias", "conv bias"),
    (r".*adaLN_modulation\.1\..*", "zero"),
    (r"final_layer\.linear\..*", "zero"),
    (r"y_emb_preprocess\.(attn\.proj|mlp\.w3)\.weight", "zero"),
    (r".*\.bias", "zero"),
    (r".*norm\w*\.weight|patch_mixer_map_\w+\.0\.weight", "one"),
    (r"x_embedder\.proj\.weight|patch_mixer_map_\w+\.1\.weight", "xavier"),
    (r"(t_embedder|y_embedder|pooled_y_emb_process)\..*weight", "normal"),
    (r"y_emb_preprocess\..*", "truncated"),
    (r".*\.(attn\.qkv|cross_attn\.q_linear|cross_attn\.kv_linear|mlp\.gate|mlp\.w1)\.weight|.*\.mlp\.w1", "truncated"),
    (r".*\.(attn\.proj|cross_attn\.proj|mlp\.w2|mlp\.w3)\.weight|.*\.mlp\.w2", "scaled"),
]


def rule_of(name: str) -> str:
    """Which rule fills the parameter of that name."""
    return next(rule for pattern, rule in RULES if re.fullmatch(pattern, name))


def layers_behind(name: str, config: MicroDiTConfig) -> int:
    """i+1 in backbone block i; the whole depth in the mixer, whose output passes through all of it."""
    kind, index, *_ = name.split(".")
    return int(index) + 1 if kind == "blocks" else config.depth


def _truncated(values: Tensor, std: float, generator: torch.Generator) -> Tensor:
    # torch's trunc_normal_ inverts the error function of a float32, which at a cutoff this far out can
    # land on the cutoff itself: a few weights of -2 in a billion. Normal values, clamped, cannot.
    return values.normal_(0, std, generator=generator).clamp_(-CUTOFF, CUTOFF)


def _xavier(values: Tensor, generator: torch.Generator) -> Tensor:
    fan_out, fan_in = values.flatten(1).shape
    bound = math.sqrt(6 / (fan_in + fan_out))
    return values.uniform_(-bound, bound, generator=generator)


def _values(name: str, shape: torch.Size, config: MicroDiTConfig, generator: torch.Generator) -> Tensor:
    values = torch.empty(shape, dtype=torch.float32, device="cpu")
    match rule_of(name):
        case "zero":
            return values.zero_()
        case "one":
            return values.fill_(1)
        case "xavier":
            return _xavier(values, generator)
        case "normal":
            return values.normal_(0, STD, generator=generator)
        case "conv bias":  # PyTorch's own default
            bound = 1 / math.sqrt(config.patch_channels)
            return values.uniform_(-bound, bound, generator=generator)
        case "truncated":
            return _truncated(values, STD, generator)
        case "scaled":
            return _truncated(values, STD / math.sqrt(2 * layers_behind(name, config)), generator)
        case rule:
            raise AssertionError(f"no such rule: {rule}")


@torch.no_grad()
def init_weights(model: nn.Module, config: MicroDiTConfig, seed: int) -> None:
    """Fill every parameter of `model` in place. Touches no global random state."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.copy_(_values(name, parameter.shape, config, generator))
