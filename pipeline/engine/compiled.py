"""Compilation of the network block by block, with static shapes.

A block is compiled for its widths, not for its place, so blocks of equal widths share one graph: the backbone of XL/2
has 24 different ones, its mixer two more; with the text block and the head they are 28 graphs, for each number of tokens
where latents have several shapes.
torch stops compiling a function after 8 variants and goes on uncompiled with a warning; here the limit is above what
is needed, and reaching it is an error.
"""

from collections.abc import Callable
from typing import Any

import torch

from pipeline.engine.objective import Draws, Objective
from pipeline.model import MicroDiT, MicroDiTConfig, backbone_shapes, kept_tokens, mixer_shapes

LIMIT = 1024  # a block's variants for 40 numbers of tokens


def compile_blocks(model: MicroDiT, backend: str = "inductor") -> None:
    """Compile the forward pass of every block in place; names of parameters and hooks of modules stay as they are."""
    _raise_limit()
    for block in (*model.patch_mixer, *model.blocks, model.y_emb_preprocess, model.final_layer):
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False, backend=backend)


def compiled_draw(objective: Objective, backend: str = "inductor") -> Callable[[torch.Tensor], Draws]:
    """The random numbers of a batch from a few kernels instead of some hundreds."""
    _raise_limit()
    return torch.compile(objective.draw, fullgraph=True, dynamic=False, backend=backend)


def distinct_blocks(config: MicroDiTConfig, mask_ratio: float) -> int:
    """Graphs that `compile_blocks` leads to for one batch size: one for each number of tokens and block shape, the text
    block and the head."""
    kept = kept_tokens(config.num_tokens, mask_ratio)
    blocks = {(config.num_tokens, shape) for shape in mixer_shapes(config)}
    return len(blocks | {(kept, shape) for shape in backbone_shapes(config)}) + 2


def compiled_graphs() -> int:
    """Graphs compiled in this process so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _raise_limit() -> None:
    config: Any = torch._dynamo.config
    config.recompile_limit = LIMIT
    config.accumulated_recompile_limit = 16 * LIMIT
    config.fail_on_recompile_limit_hit = True
