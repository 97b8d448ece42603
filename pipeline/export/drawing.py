"""From noise and text to pictures. Needs torch and Pillow, for it is part of the code that a model folder carries."""

import math
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.diffusion.edm import EDM
from pipeline.diffusion.noise import normals
from pipeline.diffusion.samplers import sample


def noise_of(shape: tuple[int, int, int], seed: int, numbers: list[int]) -> Tensor:
    """Standard normals [B, C, H, W] float32 on the CPU, which depend on the seed and a picture's number alone."""
    return normals(seed, "generate", torch.tensor(numbers), math.prod(shape)).unflatten(1, shape)


def draw_latents(
    network: nn.Module,
    edm: EDM,
    noise: Tensor,
    text: Tensor,
    sampler: dict[str, Any],
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Latents [B, C, H, W] of a MicroDiT for text [B, L, Dt] from standard normals [B, C, H, W].

    `sampler`: steps, guidance, and method and interval where they are not Heun's and all noise levels. A network of half
    precision multiplies in it; the rest, such as norms and the sampler's state, keeps its own.
    """
    dtype, interval = network.pos_embed.dtype, sampler.get("interval")
    with torch.autocast(noise.device.type, dtype, enabled=dtype != torch.float32):
        return sample(
            network, noise, text, edm, sampler["steps"], sampler["guidance"], network.encode_text, on_step,
            method=sampler.get("method", "heun"), interval=interval and tuple(interval),
        )  # fmt: skip


def to_pictures(images: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in [0, 1] to 8 bits."""
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]
