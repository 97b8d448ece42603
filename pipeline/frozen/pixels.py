"""From pictures to squares of pixels, the same for training data and for features."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

CROP = "short side bicubic, antialiased, then centre"


def square(image: Image.Image, px: int) -> Image.Image:
    """RGB, short side resized to `px` (bicubic, antialiased), centre crop; sizes and offsets as torchvision rounds them."""
    return covering(image, px, px)


def covering(image: Image.Image, height: int, width: int) -> Image.Image:
    """RGB, resized until it just covers height x width pixels (bicubic, antialiased), centre crop."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    wide, high = image.size
    is_tall = high * width >= wide * height  # the width is what it has less of
    size = (width, width * high // wide) if is_tall else (height * wide // high, height)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def signed(pixels: np.ndarray, device: "torch.device") -> "torch.Tensor":
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1], computed on the device: a quarter of the bytes go there."""
    import torch

    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255 * 2 - 1


def unsigned(images: "torch.Tensor") -> np.ndarray:
    """[B, 3, H, W] in [0, 1] to [B, H, W, 3] uint8."""
    return (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def unit_tensor(images: Sequence[Image.Image]) -> "torch.Tensor":
    """RGB images of one size to float32 [B, 3, H, W] in [0, 1]."""
    import torch

    stacked = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
