"""The loss of a batch, every random number in it addressed by (seed, stage, purpose, position in the sample stream).

However a batch is cut into microbatches and processes, a sample meets the same noise level, noise, mask and caption
dropout.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.config.steps import TrainSlice
from pipeline.diffusion import EDM, Loss, normals, uniforms
from pipeline.engine.batch import Batch
from pipeline.model import MicroDiTConfig, keep_ids


@dataclass(frozen=True)
class Objective:
    """EDM loss on the kept patches, with caption dropout for guidance (arXiv 2207.12598)."""

    edm: EDM
    config: MicroDiTConfig
    stage: str
    seed: int
    mask_ratio: float
    caption_dropout: float
    precision: torch.dtype

    @classmethod
    def of(cls, slice_: TrainSlice, config: MicroDiTConfig, precision: torch.dtype) -> "Objective":
        stage = slice_.stage
        edm = EDM(**slice_.diffusion.model_dump(), p_mean=stage.p_mean, p_std=stage.p_std)
        return cls(edm, config, slice_.name, slice_.seed, stage.mask_ratio, stage.caption_dropout, precision)

    def __call__(self, net: nn.Module, batch: Batch) -> Loss:
        """Loss of a batch on its device."""
        normal = self._normals("sigma", batch.positions, 1)[:, 0]
        noise = self._normals("noise", batch.positions, math.prod(batch.latents.shape[1:])).view_as(batch.latents)
        text, kept = self.drop_captions(batch), self.kept_tokens(batch.positions)
        with torch.autocast(batch.latents.device.type, self.precision, enabled=self.precision != torch.float32):
            return self.edm.loss(net, batch.latents, text, normal, noise, self.config.patch_size, kept)

    def drop_captions(self, batch: Batch) -> Tensor:
        """Text [B, L, Dt] with a share of the captions as zeros, the input that stands for no caption."""
        dropped = self._uniforms("caption_dropout", batch.positions, 1)[:, 0] < self.caption_dropout
        return batch.text.masked_fill(dropped[:, None, None], 0.0)

    def kept_tokens(self, positions: Tensor) -> Tensor | None:
        """Ids [B, int(T·(1-r))] of the tokens that are kept, None if all are."""
        if self.mask_ratio == 0:
            return None
        return keep_ids(self._uniforms("mask", positions, self.config.num_tokens), self.mask_ratio)

    def _normals(self, purpose: str, positions: Tensor, count: int) -> Tensor:
        return normals(self.seed, f"{self.stage}/{purpose}", _place(positions), count).to(positions.device)

    def _uniforms(self, purpose: str, positions: Tensor, count: int) -> Tensor:
        return uniforms(self.seed, f"{self.stage}/{purpose}", _place(positions), count).float().to(positions.device)


def _place(positions: Tensor) -> Tensor:
    return positions.cpu() if positions.device.type == "mps" else positions  # MPS has no float64
