"""MicroDiT, the network (arXiv 2407.15811). Needs torch and nothing else."""

from pipeline.model.config import PRESETS, MicroDiTConfig, at_resolution
from pipeline.model.embeddings import TextEncoding
from pipeline.model.flops import forward_flops, training_flops
from pipeline.model.masking import keep_ids, kept_tokens
from pipeline.model.microdit import MicroDiT, parameter_count, position_table, state_layout, weights_at

__all__ = [
    "PRESETS",
    "MicroDiT",
    "MicroDiTConfig",
    "TextEncoding",
    "at_resolution",
    "forward_flops",
    "keep_ids",
    "kept_tokens",
    "parameter_count",
    "position_table",
    "state_layout",
    "training_flops",
    "weights_at",
]
