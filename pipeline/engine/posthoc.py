"""Averages of any width, put together after training from snapshots of two or more (EDM2, arXiv 2312.02696, section 3.2).

A snapshot at time T with exponent γ is the average of the weights with the density (γ+1)·t^γ / T^(γ+1) on [0, T]. The
density that is wanted is approximated by a weighted sum of those of the snapshots, in the least-squares sense.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.engine.ema import exponent


class Profile(NamedTuple):
    """An average: the images seen when it was taken, and its relative width."""

    images: int
    width: float


def inner_product(a: Profile, b: Profile) -> float:
    """∫ of the product of two densities. With m the earlier time:
    (γa+1)(γb+1) m^(γa+γb+1) / ((γa+γb+1) Ta^(γa+1) Tb^(γb+1))."""
    gamma_a, gamma_b = exponent(a.width), exponent(b.width)
    earlier = min(a.images, b.images)
    # As ratios to the power, which neither overflow nor lose digits: m^(γa+γb+1) / (Ta^γa Tb^γb) / (Ta Tb)
    ratio = (earlier / a.images) ** gamma_a * (earlier / b.images) ** gamma_b * earlier / (a.images * b.images)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * ratio


def coefficients(snapshots: list[Profile], wanted: Profile) -> list[float]:
    """The factor of each snapshot in the average that is wanted.

    Raises ValueError if no snapshot is as late as the average, or there is none.
    """
    usable = [s for s in snapshots if s.images <= wanted.images]
    if not any(s.images == wanted.images for s in usable):
        raise ValueError(f"no snapshot at {wanted.images} images; there are {sorted({s.images for s in snapshots})}")
    gram = torch.tensor([[inner_product(a, b) for b in usable] for a in usable], dtype=torch.float64)
    target = torch.tensor([inner_product(a, wanted) for a in usable], dtype=torch.float64)
    scale = gram.diagonal().rsqrt()  # to unit length: the plain products span many orders of magnitude
    solved = torch.linalg.lstsq(gram * scale[:, None] * scale, target * scale, driver="gelsd").solution * scale
    found = dict(zip(usable, solved.tolist(), strict=True))
    return [found.get(snapshot, 0.0) for snapshot in snapshots]


def combine(snapshots: Iterable[dict[str, Tensor]], factors: list[float]) -> dict[str, Tensor]:
    """The weighted sum of snapshots, tensor by tensor, in float32. One snapshot at a time is in memory."""
    combined: dict[str, Tensor] = {}
    for tensors, factor in zip(snapshots, factors, strict=True):
        combined = combined or {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in tensors.items()}
        for name, total in combined.items():
            total.add_(tensors[name].float(), alpha=factor)
    return combined
