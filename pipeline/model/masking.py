"""Which tokens a masked training step keeps, and moving them out of and back into the full grid.

Dropping tokens after the patch-mixer is the deferred masking of arXiv 2407.15811, section 3.2.
"""

import torch
from torch import Tensor


def kept_tokens(num_tokens: int, mask_ratio: float) -> int:
    """int(T·(1-r)). Raises ValueError for a ratio outside [0, 1) or one that keeps no token."""
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio is {mask_ratio}; give a number from 0 to below 1")
    kept = int(num_tokens * (1 - mask_ratio))
    if kept < 1:
        raise ValueError(f"mask_ratio {mask_ratio} keeps none of {num_tokens} tokens; lower it")
    return kept


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
