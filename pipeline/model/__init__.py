"""MicroDiT, the network (arXiv 2407.15811). Needs torch and nothing else."""

from pipeline.model.config import PRESETS, BlockShape, MicroDiTConfig, at_resolution, backbone_shapes, mixer_shapes
from pipeline.model.embeddings import TextEncoding
from pipeline.model.flops import forward_flops, text_flops, training_flops
from pipeline.model.masking import keep_ids, kept_tokens
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
