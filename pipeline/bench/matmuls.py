"""What a device reaches in matmuls of the model's own shapes, forward and backward: the most its step could."""

from collections import Counter

import torch

from pipeline.engine.peak import seconds
from pipeline.model import BlockShape, MicroDiTConfig, backbone_shapes, kept_tokens, mixer_shapes

Shape = tuple[int, int, int, int]  # matmuls at once, rows, inner, columns


def matmul_shapes(config: MicroDiTConfig, images: int, mask_ratio: float) -> Counter[Shape]:
    """Every matmul of the blocks in one forward pass over `images` images, and how often."""
    shapes: Counter[Shape] = Counter()
    text = images * config.caption_length
    sides = ((mixer_shapes(config), config.num_tokens), (backbone_shapes(config), kept_tokens(config.num_tokens, mask_ratio)))
    for blocks, tokens in sides:
        for block in blocks:
            shapes.update(_block(block, images * tokens, text, config))
    return shapes


def _block(block: BlockShape, rows: int, text: int, config: MicroDiTConfig) -> list[Shape]:
    dim = block.dim
    attention = [(1, rows, dim, 3 * block.attention), (1, rows, block.attention, dim)]
    cross = [(1, rows, dim, dim), (1, text, dim, 2 * dim), (1, rows, dim, dim)]
    if not block.experts:
        return attention + cross + [(1, rows, dim, block.hidden)] * 2 + [(1, rows, block.hidden, dim)]
    chosen = int(config.expert_capacity * rows / block.experts)
    experts = [(block.experts, chosen, dim, block.hidden), (block.experts, chosen, block.hidden, dim)]
    return attention + cross + experts


def own_shapes_flops(
    config: MicroDiTConfig, images: int, mask_ratio: float, device: torch.device, precision: torch.dtype, repeats: int
) -> float:
    """FLOP/s over all matmuls of a step: each forward one, and the two of its backward pass."""
    flops = spent = 0.0
    for (many, rows, inner, columns), count in matmul_shapes(config, images, mask_ratio).items():
        for m, k, n in ((rows, inner, columns), (rows, columns, inner), (inner, rows, columns)):
            a, b = torch.randn(many, m, k, device=device).to(precision), torch.randn(many, k, n, device=device).to(precision)
            spent += count * seconds(lambda a=a, b=b: torch.bmm(a, b), device, repeats)
            flops += count * 2.0 * many * m * k * n
    return flops / spent
