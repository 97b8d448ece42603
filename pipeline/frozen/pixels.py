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
    image = image if image.mode == "RGB" else image.convert("RGB")
    short = min(image.size)
    width, height = (px if side == short else int(px * side / short) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - px) / 2), round((height - px) / 2)
    return image.crop((left, top, left + px, top + px))


def signed(pixels: np.ndarray, device: "torch.device") -> "torch.Tensor":
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1], computed on the device: a quarter of the bytes go there."""
    import torch

    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255 * 2 - 1


def unit_tensor(images: Sequence[Image.Image]) -> "torch.Tensor":
    """RGB images of one size to float32 [B, 3, H, W] in [0, 1]."""
    import torch

    stacked = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
