"""Folders of images by index: samples of a model and reconstructions of the autoencoder, made once and kept.

An image depends on its caption, its index and the seed, never on the batch it was made in. What exists is whole and is
not made again, so the same command goes on after an interruption.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.artifacts import atomic
from pipeline.diffusion import EDM, normals, sample
from pipeline.frozen.text import TextEncoder
from pipeline.frozen.vae import Vae
from pipeline.model import MicroDiT
from pipeline.runtime import progress

FOLDER_IMAGES = 1000  # files a sub-folder
Maker = Callable[[list[int]], np.ndarray]  # indices to images [B, px, px, 3] uint8


@dataclass(frozen=True)
class Sampler:
    """Draws images for captions with Heun's method and guidance; `seed` and the index of a caption make its noise."""

    vae: Vae
    text_encoder: TextEncoder
    edm: EDM
    steps: int
    guidance: float
    seed: int
    device: torch.device
    precision: torch.dtype

    def maker(self, network: MicroDiT, captions: Sequence[str]) -> Maker:
        """Images of `network` for the captions at the given indices."""
        network = network.to(self.device).eval()
        return lambda indices: self._draw(network, [captions[i] for i in indices], indices)

    @torch.inference_mode()
    def _draw(self, network: MicroDiT, captions: list[str], indices: list[int]) -> np.ndarray:
        config = network.config
        shape = (config.in_channels, config.input_size, config.input_size)
        z = normals(self.seed, "evaluation", torch.tensor(indices), math.prod(shape)).unflatten(1, shape).to(self.device)
        text, _ = self.text_encoder.encode(captions)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            latents = sample(network, z, text, self.edm, self.steps, self.guidance, network.encode_text)
        return to_uint8(self.vae.decode(latents))


@torch.inference_mode()
def reconstruct(vae: Vae, images: np.ndarray) -> np.ndarray:
    """Images [B, px, px, 3] uint8 through the autoencoder and back, by the mean of its posterior."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    side = images.shape[1] // vae.factor
    return to_uint8(vae.decode(vae.encode(pixels, torch.zeros(len(images), vae.channels, side, side))))


def to_uint8(images: Tensor) -> np.ndarray:
    """[B, 3, H, W] in [0, 1] to [B, H, W, 3] uint8."""
    return (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


@dataclass(frozen=True)
class Images:
    """A folder of `count` PNGs by index."""

    folder: Path
    count: int

    def file(self, index: int) -> Path:
        return self.folder / f"{index // FOLDER_IMAGES:03d}" / f"{index:06d}.png"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        """[px, px, 3] uint8."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        with Image.open(self.file(index)) as image:
            return np.array(image)

    def complete(self, make: Maker, batch: int, what: str) -> int:
        """Make the images that are not there yet, `batch` at a time. Returns how many were made."""
        missing = [i for i in range(self.count) if not self.file(i).exists()]
        with progress(what, self.count, initial=self.count - len(missing)) as bar, ThreadPoolExecutor() as writers:
            for start in range(0, len(missing), batch):
                indices = missing[start : start + batch]
                list(writers.map(self._write, indices, make(indices)))
                bar.update(len(indices))
        return len(missing)

    def _write(self, index: int, image: np.ndarray) -> None:
        with atomic(self.file(index)) as temporary:
            Image.fromarray(image).save(temporary, format="png")
