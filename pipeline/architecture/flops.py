"""Floating-point operations of the network: 2 for each multiply-add of a matmul or an attention.

Counted: every Linear, the patch embedding, both products of every attention (queries with keys, then
weights with values) and the experts at the tokens they really take. Not counted: norms, activations,
softmax, positions and the optimiser, which together stay under about a percent.
Training is three forward passes: one forward and two in the backward pass.
"""

from pipeline.architecture.config import (
    NOISE_FREQUENCIES,
    BlockShape,
    MicroDiTConfig,
    backbone_shapes,
    kept_tokens,
    mixer_shapes,
    text_hidden,
)


def _feed_forward(shape: BlockShape, tokens: int, capacity: float) -> int:
    """Multiply-adds of one FFN over `tokens` tokens."""
    if not shape.experts:
        return 3 * tokens * shape.dim * shape.hidden
    chosen = shape.experts * int(capacity * tokens / shape.experts)
    return tokens * shape.dim * shape.experts + 2 * chosen * shape.dim * shape.hidden


def _block(shape: BlockShape, tokens: int, config: MicroDiTConfig) -> int:
    """Multiply-adds of one DiT block, its modulation from the condition included."""
    dim, width, length = shape.dim, shape.attention, config.caption_length
    attention = 4 * tokens * dim * width + 2 * tokens * tokens * width
    cross = 2 * tokens * dim * dim + 2 * length * dim * dim + 2 * tokens * length * dim
    return attention + cross + _feed_forward(shape, tokens, config.expert_capacity) + 6 * dim * config.dim


def _text(config: MicroDiTConfig) -> int:
    """Multiply-adds of the text path: projection, its block, pooling."""
    dim, length = config.dim, config.caption_length
    projection = length * (config.caption_channels * dim + dim * dim)
    block = length * (4 * dim * dim + 3 * dim * text_hidden(config)) + 2 * length * length * dim
    return projection + block + 2 * dim * dim


def _projections(config: MicroDiTConfig, tokens: int) -> int:
    """Multiply-adds between the backbone's and the mixer's width, for so many tokens in and out and for the text."""
    if config.mixer_depth == 0 or config.mixer_dim == config.dim:
        return 0
    return config.dim * config.mixer_dim * (tokens + config.caption_length)


def forward_flops(config: MicroDiTConfig, mask_ratio: float = 0.0, num_tokens: int | None = None) -> float:
    """FLOPs of one forward pass for one image of which `mask_ratio` of the tokens are dropped; of `num_tokens`, or as many
    as the config's square has."""
    every, dim = num_tokens or config.num_tokens, config.dim
    kept = kept_tokens(every, mask_ratio)
    patches = config.patch_channels * dim * (every + kept)
    condition = 2 * NOISE_FREQUENCIES * dim + dim * dim + 2 * dim * dim
    mixer = sum(_block(shape, every, config) for shape in mixer_shapes(config))
    backbone = sum(_block(shape, kept, config) for shape in backbone_shapes(config))
    return 2.0 * (patches + condition + _text(config) + _projections(config, every + kept) + mixer + backbone)


def text_flops(config: MicroDiTConfig) -> float:
    """FLOPs of `encode_text` with keys and values, for one caption: what calls with the same text need not repeat."""
    mapped = config.mixer_depth > 0 and config.mixer_dim != config.dim
    projection = config.caption_length * config.dim * config.mixer_dim if mapped else 0
    keys_values = sum(2 * config.caption_length * s.dim * s.dim for s in (*mixer_shapes(config), *backbone_shapes(config)))
    return 2.0 * (_text(config) + projection + keys_values)


def training_flops(config: MicroDiTConfig, mask_ratio: float = 0.0, num_tokens: int | None = None) -> float:
    """FLOPs of one training step for one image: three times the forward pass."""
    return 3 * forward_flops(config, mask_ratio, num_tokens)
