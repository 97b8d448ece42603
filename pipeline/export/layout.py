"""Whether tensors fit an architecture, and which architecture a set of tensors belongs to."""

import math
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.architecture.config import backbone_shapes, mixer_shapes, text_hidden
from pipeline.errors import UserError
from pipeline.model import MicroDiTConfig, position_table, state_layout

State = dict[str, Tensor]

SMALLEST_HEAD, LARGEST_HEAD = 8, 256
MULTIPLES = (256, 512, 1024, 128, 64, 32, 16, 8, 4, 2, 1)  # the official one first
TABLE_TOLERANCE = 2**-7  # half-precision checkpoints round their positions


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def check_state(path: Path, config: MicroDiTConfig, state: State) -> None:
    """Raises UserError naming the missing, unexpected and misshaped keys, if there are any."""
    layout = state_layout(config)
    misshaped = [
        f"{name} {list(state[name].shape)} instead of {list(shape)}"
        for name, shape in layout.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    faults = {
        "missing": [name for name in layout if name not in state],
        "unexpected": [name for name in state if name not in layout],
        "misshaped": misshaped,
    }
    told = [f"{kind}: {_some(names)}" for kind, names in faults.items() if names]
    if told:
        raise UserError(f"{path}: the tensors do not fit the architecture; {'; '.join(told)}")


def _shape(path: Path, state: State, name: str) -> torch.Size:
    if name not in state:
        raise UserError(f"{path}: not a MicroDiT checkpoint; missing: {name}")
    return state[name].shape


def _indices(state: State, pattern: str) -> list[int]:
    return sorted({int(match[1]) for name in state if (match := re.match(pattern, name))})


def _count(state: State, blocks: str) -> int:
    """Up to the last block there is: one that is missing in between is a fault, not a shorter model."""
    return max(_indices(state, rf"{blocks}\.(\d+)\."), default=-1) + 1


def _experts(path: Path, state: State) -> tuple[int, int]:
    """(number of experts, every how many blocks), 0 experts where every FFN is dense."""
    gates = _indices(state, r"blocks\.(\d+)\.mlp\.gate\.weight")
    mixer_gates = _indices(state, r"patch_mixer\.(\d+)\.mlp\.gate\.weight")
    if not gates and not mixer_gates:
        return 0, 2
    name = f"blocks.{gates[0]}" if gates else f"patch_mixer.{mixer_gates[0]}"
    return _shape(path, state, f"{name}.mlp.gate.weight")[0], (gates or mixer_gates)[0] + 1


def _plain_sizes(path: Path, state: State) -> MicroDiTConfig:
    """What the shapes say outright; head_dim and multiple_of stand at 1."""
    dim, channels, patch, _ = _shape(path, state, "x_embedder.proj.weight")
    tokens = _shape(path, state, "pos_embed")[1]
    mixer_depth = _count(state, "patch_mixer")
    num_experts, every = _experts(path, state)
    return MicroDiTConfig(
        input_size=math.isqrt(tokens) * patch,
        patch_size=patch,
        in_channels=channels,
        dim=dim,
        depth=_count(state, "blocks"),
        head_dim=1,
        multiple_of=1,
        caption_channels=_shape(path, state, "y_embedder.y_proj.fc1.weight")[1],
        mixer_depth=mixer_depth,
        mixer_dim=_shape(path, state, "patch_mixer.0.norm1.weight")[0] if mixer_depth else dim,
        num_experts=num_experts,
        experts_every_n=every,
        expert_capacity=min(2.0, max(num_experts, 1)),
        mask_mode="deferred" if mixer_depth else "naive",
    )


def _width(state: State, name: str, axis: int) -> int:
    """Size of one axis, -1 for a tensor that is missing: `check_state` names it later."""
    return state[name].shape[axis] if name in state else -1


def _head_dims(path: Path, state: State, config: MicroDiTConfig) -> list[int]:
    """The head sizes whose rounding explains most of the widths: heads leave no other trace in the shapes."""
    seen = [_width(state, f"blocks.{i}.attn.proj.weight", 1) for i in range(config.depth)]
    common = math.gcd(config.dim, config.mixer_dim)
    wrong = {
        size: sum(
            shape.attention != width for shape, width in zip(backbone_shapes(replace(config, head_dim=size)), seen, strict=True)
        )
        for size in range(SMALLEST_HEAD, LARGEST_HEAD + 1)
        if common % size == 0
    }
    if not wrong:
        raise UserError(f"{path}: widths {config.dim} and {config.mixer_dim} share no head size; give the config")
    return [size for size, count in wrong.items() if count == min(wrong.values())]


def _hidden_widths(config: MicroDiTConfig) -> list[int]:
    blocks = (*backbone_shapes(config), *mixer_shapes(config))
    return [shape.hidden for shape in blocks] + [text_hidden(config)]


def _multiple_of(state: State, config: MicroDiTConfig) -> int:
    """Any rounding that gives the widths seen; two that give the same widths are the same model."""
    blocks = (
        *(f"blocks.{i}" for i in range(config.depth)),
        *(f"patch_mixer.{i}" for i in range(config.mixer_depth)),
        "y_emb_preprocess",
    )
    seen = [
        _width(state, f"{name}.mlp.w1", 2) if f"{name}.mlp.w1" in state else _width(state, f"{name}.mlp.w1.weight", 0)
        for name in blocks
    ]

    def wrong(multiple: int) -> int:
        widths = _hidden_widths(replace(config, multiple_of=multiple))
        return sum(a != b for a, b in zip(widths, seen, strict=True))

    return min(MULTIPLES, key=wrong)


def _position_scale(path: Path, state: State, config: MicroDiTConfig) -> float:
    """Second token, first channel is sin(1/scale). Raises UserError if the table is no sin-cos table."""
    table = state["pos_embed"].double()
    sine = float(table[0, 1, 0]) if config.tokens_a_side > 1 else math.sin(1)
    scale = round(1 / math.asin(sine), 2) if 0 < sine < 1 else 1.0
    expected = position_table(replace(config, pos_interp_scale=scale))
    if expected.shape != table.shape or (expected - table).abs().max() > TABLE_TOLERANCE:
        raise UserError(f"{path}: pos_embed is not the fixed table of sines and cosines; give the config")
    return scale


def infer_config(path: Path, state: State) -> MicroDiTConfig:
    """The architecture behind a state dictionary that uses the official layer-wise scaling.

    The caption length (77), the expert capacity (2) and the scaling's end points leave no trace in the
    shapes and are taken to be official. Raises UserError where the shapes leave a choice.
    """
    try:
        config = _plain_sizes(path, state)
        head_dims = _head_dims(path, state, config)
        config = replace(config, head_dim=head_dims[0])
        config = replace(config, multiple_of=_multiple_of(state, config))
    except UserError:
        raise
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: not a MicroDiT checkpoint ({error})") from error
    check_state(path, config, state)
    if len(head_dims) > 1:
        raise UserError(f"{path}: the shapes leave head_dim open (any of {head_dims}); give the config")
    return replace(config, pos_interp_scale=_position_scale(path, state, config))
