"""Which tokens a masked training step keeps, and moving them out of and back into the full grid.

Dropping tokens after the patch-mixer is the deferred masking of arXiv 2407.15811, section 3.2.
"""

import torch
from torch import Tensor

from pipeline.architecture.config import kept_tokens


def keep_ids(scores: Tensor, mask_ratio: float) -> Tensor:
    """A random subset of the tokens of each image, drawn from random numbers made elsewhere.

    scores [B, T] independent uniforms; returns ids [B, int(T·(1-r))] int64, ascending so that the
    gathers read forwards. Every subset of that size is equally likely.
    """
    kept = kept_tokens(scores.shape[1], mask_ratio)
    return scores.argsort(dim=1, stable=True)[:, :kept].sort(dim=1).values


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """tokens [B, T, D], ids [B, K] -> [B, K, D]."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def put_tokens(tokens: Tensor, ids: Tensor, num_tokens: int) -> Tensor:
    """The inverse of `take_tokens`: tokens [B, K, D], ids [B, K] -> [B, T, D], zeros where dropped."""
    full = tokens.new_zeros(tokens.shape[0], num_tokens, tokens.shape[-1])
    return full.scatter(1, ids[..., None].expand_as(tokens), tokens)


def unpatchify(tokens: Tensor, patch_size: int, rows: int) -> Tensor:
    """tokens [B, T, p·p·C] of a grid of `rows`, row-major, in the order (p, p, C) -> image [B, C, H, W]."""
    batch, num_tokens, width = tokens.shape
    columns, channels = num_tokens // rows, width // patch_size**2
    grid = tokens.reshape(batch, rows, columns, patch_size, patch_size, channels)
    return torch.einsum("nhwpqc->nchpwq", grid).reshape(batch, channels, rows * patch_size, columns * patch_size)
