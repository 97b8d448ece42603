"""Sampling on the EDM grid, and classifier-free guidance.

All three methods follow dx/dσ = (x - D(x; σ)) / σ (arXiv 2206.00364, equation 1 with σ(t) = t) from pure noise to σ = 0,
without churn. Each function is pure; a denoiser is any (x [B, C, H, W], sigma [B]) -> [B, C, H, W].
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.diffusion.edm import EDM, Network

Denoiser = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[int, int], None]  # (steps done, of how many)
Denoised = Callable[[Tensor, float], Tensor]  # D(x; σ) of the state x [B, C, H, W] float64
Method = Callable[[Denoised, Tensor, list[float]], Iterator[Tensor]]  # x at grid[0] -> x after each step down the grid


class Sampler(Protocol):
    """Standard normals z [B, C, H, W] -> samples of z's dtype.

    The state is float64, the denoiser sees z's dtype. on_step(done, steps) reports progress.
    """

    def __call__(self, denoiser: Denoiser, z: Tensor, edm: EDM, steps: int, on_step: OnStep | None = None) -> Tensor: ...


def sigma_grid(edm: EDM, steps: int) -> Tensor:
    """Noise levels [steps + 1] float64 from sigma_max to sigma_min, then 0 (arXiv 2206.00364, equation 5).

    Raises ValueError for fewer than 2 steps.
    """
    if steps < 2:
        raise ValueError(f"sampler: steps is {steps}; give a whole number of at least 2")
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    low, high = edm.sigma_min ** (1 / edm.rho), edm.sigma_max ** (1 / edm.rho)
    return torch.cat([(high + ramp * (low - high)) ** edm.rho, torch.zeros(1, dtype=torch.float64)])


def _sampler(method: Method) -> Sampler:
    def run(denoiser: Denoiser, z: Tensor, edm: EDM, steps: int, on_step: OnStep | None = None) -> Tensor:
        def denoised(x: Tensor, sigma: float) -> Tensor:
            level = torch.full((len(z),), sigma, dtype=z.dtype, device=z.device)
            return denoiser(x.to(z.dtype), level).double()

        grid = sigma_grid(edm, steps).tolist()
        states = method(denoised, z.double() * grid[0], grid)
        for done in range(1, steps + 1):
            x = next(states)
            if on_step:
                on_step(done, steps)
        return x.to(z.dtype)

    run.__name__, run.__doc__ = method.__name__, method.__doc__
    return run


@_sampler
def heun(denoised: Denoised, x: Tensor, grid: list[float]) -> Iterator[Tensor]:
    """Heun's method (arXiv 2206.00364, algorithm 1): second order by 2·steps - 1 calls; the step to 0 is Euler's."""
    for now, after in pairwise(grid):
        first = (x - denoised(x, now)) / now
        ahead = x + (after - now) * first
        x = ahead if after == 0 else x + (after - now) * (first + (ahead - denoised(ahead, after)) / after) / 2
        yield x


@_sampler
def euler(denoised: Denoised, x: Tensor, grid: list[float]) -> Iterator[Tensor]:
    """Euler's method: first order by a call a step."""
    for now, after in pairwise(grid):
        x = x + (after - now) * (x - denoised(x, now)) / now
        yield x


@_sampler
def dpmpp_2m(denoised: Denoised, x: Tensor, grid: list[float]) -> Iterator[Tensor]:
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2 with α = 1, λ = -ln σ): second order by a call a step.

    From one level to the next x goes towards a guess of the denoised image in the middle of the step, a straight line
    in λ through the last two. The first step has only one, and the step to 0, where λ is infinite, takes the last.
    """
    before, span = None, 0.0  # the denoised image of the level before, and how far above in λ that was
    for now, after in pairwise(grid):
        there = middle = denoised(x, now)
        step = math.log(now / after) if after else math.inf
        if before is not None and after:
            middle = there + step / (2 * span) * (there - before)
        ratio = after / now
        x = ratio * x + (1 - ratio) * middle
        before, span = there, step
        yield x


SAMPLERS: dict[str, Sampler] = {"heun": heun, "dpmpp_2m": dpmpp_2m, "euler": euler}


def denoiser_calls(method: str, steps: int) -> int:
    """How often a sampler asks the denoiser."""
    return 2 * steps - 1 if method == "heun" else steps


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
    on_step: OnStep | None = None,
    method: str = "heun",
    interval: tuple[float, float] | None = None,
) -> Tensor:
    """Latents [B, C, H, W] for captions `text` [B, L, Dt] from standard normals z [B, C, H, W].

    `method` is one of SAMPLERS. Guidance acts at noise levels low < σ <= high of `interval` (arXiv 2404.07724); at others
    the network is asked for the conditional half alone. Raises ValueError for an unknown method.
    """
    if method not in SAMPLERS:
        raise ValueError(f"sampler: name is {method!r}; give one of {', '.join(SAMPLERS)}")
    network = guided(net, text, guidance, encode)
    outside = network if interval is None or guidance == 1 else guided(net, text, 1, encode)
    low, high = interval or (0.0, math.inf)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        chosen = network if outside is network or low < sigma[0].item() <= high else outside
        return edm.denoise(lambda scaled, c_noise, *_: chosen(scaled, c_noise), x, sigma, None)

    return SAMPLERS[method](denoiser, z, edm, steps, on_step)
