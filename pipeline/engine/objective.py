"""The loss of a batch, every random number in it addressed by (seed, stage, purpose, position in the sample stream).

However a batch is cut into microbatches and processes, a sample meets the same noise level, noise, mask and caption
dropout.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.diffusion import EDM, Loss, normals, uniforms
from pipeline.engine.batch import Batch
from pipeline.engine.recipe import Recipe
from pipeline.model import MicroDiTConfig, keep_ids


class Draws(NamedTuple):
    """The random numbers of a batch."""

    normal: Tensor  # [B], of the noise levels
    noise: Tensor  # [B, C, H, W]
    drops_caption: Tensor  # [B] bool
    ids_keep: Tensor | None  # [B, int(T·(1-r))], None if no token is dropped


@dataclass(frozen=True)
class Objective:
    """EDM loss on the kept patches, with caption dropout for guidance (arXiv 2207.12598)."""

    edm: EDM
    config: MicroDiTConfig
    recipe: Recipe
    precision: torch.dtype = torch.float32

    def __call__(self, net: nn.Module, batch: Batch, draw: Callable[..., Draws] | None = None) -> Loss:
        """Loss of a batch on its device. `draw` stands in for the method of that name: the same, compiled."""
        normal, noise, drops_caption, kept = (draw or self.draw)(batch.positions, *batch.latents.shape[2:])
        text = batch.text.masked_fill(drops_caption[:, None, None], 0.0)  # zeros stand for no caption
        with torch.autocast(batch.latents.device.type, self.precision, enabled=self.precision != torch.float32):
            return self.edm.loss(net, batch.latents, text, normal, noise, self.config.patch_size, kept)

    def draw(self, positions: Tensor, height: int, width: int) -> Draws:
        """The random numbers at positions [B] of the sample stream, on their device, for latents of that size."""
        shape = self.config.in_channels, height, width
        noise = self._numbers(normals, "noise", positions, math.prod(shape)).unflatten(1, shape)
        drops_caption = self._numbers(uniforms, "caption_dropout", positions, 1)[:, 0] < self.recipe.caption_dropout
        kept = self.kept_tokens(positions, height * width // self.config.patch_size**2)
        return Draws(self._numbers(normals, "sigma", positions, 1)[:, 0], noise, drops_caption, kept)

    def kept_tokens(self, positions: Tensor, tokens: int) -> Tensor | None:
        """Ids [B, int(T·(1-r))] of the tokens that are kept, of T `tokens`; None if all are."""
        if self.recipe.mask_ratio == 0:
            return None
        return keep_ids(self._numbers(uniforms, "mask", positions, tokens), self.recipe.mask_ratio)

    def _numbers(self, kind: Callable[..., Tensor], purpose: str, positions: Tensor, count: int) -> Tensor:
        place = positions.cpu() if positions.device.type == "mps" else positions  # MPS has no float64
        numbers = kind(self.recipe.seed, f"{self.recipe.name}/{purpose}", place, count)
        return numbers.float().to(positions.device)
