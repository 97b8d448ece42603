"""MicroDiT, the network (arXiv 2407.15811). Needs torch and nothing else."""

from pipeline.architecture import (
    PRESETS,
    BlockShape,
    MicroDiTConfig,
    at_resolution,
    backbone_shapes,
    forward_flops,
    kept_tokens,
    mixer_shapes,
    text_flops,
    training_flops,
)
from pipeline.model.embeddings import TextEncoding
from pipeline.model.masking import keep_ids
from pipeline.model.microdit import MicroDiT, parameter_count, position_table, state_layout, weights_at

__all__ = [
    "PRESETS",
    "BlockShape",
    "MicroDiT",
    "MicroDiTConfig",
    "TextEncoding",
    "at_resolution",
    "backbone_shapes",
    "forward_flops",
    "keep_ids",
    "kept_tokens",
    "mixer_shapes",
    "parameter_count",
    "position_table",
    "state_layout",
    "text_flops",
    "training_flops",
    "weights_at",
]
