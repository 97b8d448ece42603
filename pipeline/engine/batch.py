"""What one training step reads."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Samples and their positions in the sample stream, which address their random numbers."""

    positions: Tensor  # [B] int64
    latents: Tensor  # [B, C, H, W] float16
    text: Tensor  # [B, L, Dt] float16

    def split(self, size: int) -> Iterator["Batch"]:
        """Microbatches of at most `size` samples, in order."""
        return map(Batch._make, zip(*(tensor.split(size) for tensor in self), strict=True))

    def to(self, device: torch.device) -> "Batch":
        """Positions stay int64; values become float32 on the device."""
        moved = [tensor.to(device, non_blocking=True) for tensor in self]
        return Batch(moved[0], moved[1].float(), moved[2].float())
