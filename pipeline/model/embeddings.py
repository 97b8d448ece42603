"""What turns latents, noise levels and captions into tokens and conditions (arXiv 2407.15811, section 2)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.architecture.config import NOISE_FREQUENCIES


class Linear(nn.Linear):
    """A Linear that draws no values of its own: init.py fills all of them, from one seed."""

    def reset_parameters(self) -> None:
        pass


class PatchConv(nn.Conv2d):
    """A convolution that draws no values of its own, for the reason given in `Linear`."""

    def reset_parameters(self) -> None:
        pass


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation, which the model uses everywhere but in its experts."""
    return F.gelu(x, approximate="tanh")


def sincos_positions(dim: int, side: int, scale: float, rows: int, columns: int) -> Tensor:
    """Fixed 2-D positions [rows·columns, dim] float32: the column in the first half, the row in the second.

    Each half is [sin, cos] of position·10000^(-i/(dim/4)); position = (index + (side - n)/2) / scale in a line of n: index
    / scale in the square of `side`, and around the same centre in all other grids. Worked out in float64, because float32
    angles would differ from the official table in the last bits.
    """
    across, down = _line(dim, side, scale, columns), _line(dim, side, scale, rows)
    return torch.cat([across.repeat(rows, 1), down.repeat_interleave(columns, dim=0)], dim=1).float()


def _line(dim: int, side: int, scale: float, count: int) -> Tensor:
    """[count, dim/2] float64, of one axis."""
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (dim / 4))
    indices = torch.arange(count, dtype=torch.float64, device="cpu") + (side - count) / 2
    angles = torch.outer(indices / scale, omega)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class PatchEmbedding(nn.Module):
    """Latents [B, C, H, W] -> tokens [B, T, D], row-major."""

    def __init__(self, patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = PatchConv(channels, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        # Sums keep the layout of their first operand: left transposed, every residual of the network would be.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class NoiseEmbedding(nn.Module):
    """c_noise [B] -> [B, D]: 512 sinusoids, then a two-layer MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(2 * NOISE_FREQUENCIES, dim), nn.GELU("tanh"), Linear(dim, dim))

    def forward(self, c_noise: Tensor) -> Tensor:
        index = torch.arange(NOISE_FREQUENCIES, dtype=torch.float32, device=c_noise.device)
        angles = c_noise.float()[:, None] * torch.exp(-math.log(10000) * index / NOISE_FREQUENCIES)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class ProjectionMLP(nn.Module):
    """Linear – GELU – LayerNorm – Linear: [..., Din] -> [..., D]."""

    def __init__(self, dim_in: int, dim: int, eps: float) -> None:
        super().__init__()
        self.fc1 = Linear(dim_in, dim)
        self.norm = nn.LayerNorm(dim, eps, bias=False)
        self.fc2 = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(gelu(self.fc1(x))))


class KeysValues(NamedTuple):
    """What one cross-attention reads of the text, already projected."""

    keys: Tensor  # [B, L, d], normalised
    values: Tensor  # [B, L, d]


class TextEncoding(NamedTuple):
    """All that the network reads of a batch of captions, worked out once for any number of calls."""

    mixer: list[Tensor | KeysValues]  # for each mixer block: text tokens [B, L, Dm], or their keys and values
    blocks: list[Tensor | KeysValues]  # for each backbone block: [B, L, D], or keys and values
    pooled: Tensor  # [B, D], added to the noise embedding
    mask: Tensor | None = None  # [B, 1, 1, L] bool, False where a token is padding; None: all tokens are read


def text_mask(text: Tensor) -> Tensor:
    """[B, L, Dt] -> [B, 1, 1, L]: which tokens are none of the padding, whose embeddings are all zeros.

    The first token always counts, so that an empty caption is one token of zeros.
    """
    mask = (text != 0).any(dim=-1)
    mask[:, 0] = True
    return mask[:, None, None, :]
