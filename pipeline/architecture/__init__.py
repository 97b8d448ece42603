"""The numbers of a MicroDiT: its architecture, its operations and its size. The standard library alone, so that a run can be
planned without torch."""

from pipeline.architecture.config import (
    NOISE_FREQUENCIES,
    PRESETS,
    BlockShape,
    MicroDiTConfig,
    at_resolution,
    backbone_shapes,
    kept_tokens,
    mixer_shapes,
)
from pipeline.architecture.flops import forward_flops, text_flops, training_flops
from pipeline.architecture.size import parameters

__all__ = [
    "NOISE_FREQUENCIES",
    "PRESETS",
    "BlockShape",
    "MicroDiTConfig",
    "at_resolution",
    "backbone_shapes",
    "forward_flops",
    "kept_tokens",
    "mixer_shapes",
    "parameters",
    "text_flops",
    "training_flops",
]
