"""Sampling: Heun's method on the EDM grid (arXiv 2206.00364, algorithm 1) and classifier-free guidance.

Each function is pure; a denoiser is any (x [B, C, H, W], sigma [B]) -> [B, C, H, W].
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pipeline.diffusion.edm import EDM, Network

Denoiser = Callable[[Tensor, Tensor], Tensor]


def sigma_grid(edm: EDM, steps: int) -> Tensor:
    """Noise levels [steps + 1] float64 from sigma_max to sigma_min, then 0 (equation 5).

    Raises ValueError for fewer than 2 steps.
    """
    if steps < 2:
        raise ValueError(f"sampler: steps is {steps}; give a whole number of at least 2")
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    low, high = edm.sigma_min ** (1 / edm.rho), edm.sigma_max ** (1 / edm.rho)
    return torch.cat([(high + ramp * (low - high)) ** edm.rho, torch.zeros(1, dtype=torch.float64)])


def heun(denoiser: Denoiser, z: Tensor, edm: EDM, steps: int, on_step: Callable[[int, int], None] | None = None) -> Tensor:
    """Standard normals z [B, C, H, W] -> samples of z's dtype, by 2·steps - 1 calls of the denoiser.

    The state is float64, the denoiser sees z's dtype. No churn. on_step(done, steps) reports progress.
    """

    def slope(x: Tensor, sigma: float) -> Tensor:
        level = torch.full((len(z),), sigma, dtype=z.dtype, device=z.device)
        return (x - denoiser(x.to(z.dtype), level).double()) / sigma

    grid = sigma_grid(edm, steps).tolist()
    x = z.double() * grid[0]
    for step, (now, after) in enumerate(pairwise(grid), 1):
        first = slope(x, now)
        euler = x + (after - now) * first
        x = euler if after == 0 else x + (after - now) * (first + slope(euler, after)) / 2
        if on_step:
            on_step(step, steps)
    return x.to(z.dtype)


def guided(
    net: Network, text: Tensor, scale: float, encode: Callable[[Tensor], Any] | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """A network with `text` [B, L, Dt] and guidance built in: (x, c_noise) -> u + s·(c - u).

    Both halves go through one doubled batch; the unconditional input is zeros in place of the text
    (arXiv 2207.12598). A scale of 1 needs no unconditional half. `encode` turns the text into what
    `net` takes, once for all calls.
    """

    def single(x: Tensor, c_noise: Tensor) -> Tensor:
        return net(x, c_noise, encoded)

    def doubled(x: Tensor, c_noise: Tensor) -> Tensor:
        conditional, unconditional = net(torch.cat([x, x]), torch.cat([c_noise, c_noise]), encoded).chunk(2)
        return unconditional + scale * (conditional - unconditional)

    inputs = text if scale == 1 else torch.cat([text, torch.zeros_like(text)])
    encoded = encode(inputs) if encode else inputs
    return single if scale == 1 else doubled


@torch.inference_mode()
def sample(
    net: Network,
    z: Tensor,
    text: Tensor,
    edm: EDM,
    steps: int = 30,
    guidance: float = 5.0,
    encode: Callable[[Tensor], Any] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Latents [B, C, H, W] for captions `text` [B, L, Dt] from standard normals z [B, C, H, W]."""
    network = guided(net, text, guidance, encode)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return edm.denoise(lambda scaled, c_noise, *_: network(scaled, c_noise), x, sigma, None)

    return heun(denoiser, z, edm, steps, on_step)
