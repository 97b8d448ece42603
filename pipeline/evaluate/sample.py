"""Folders of images by index: samples of a model and reconstructions of the autoencoder, made once and kept.

An image depends on its caption, its index and the seed. Products of another shape may be summed in another order, so its
last bits depend on the size of its batch too; hence batches are always the same ones, whichever job makes them and
whatever is there already. What exists is whole and is kept, so the same command goes on after an interruption.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from pipeline.artifacts import atomic
from pipeline.config.steps import EvaluateSlice, Settings
from pipeline.diffusion import EDM, normals, sample
from pipeline.engine.compiled import compile_blocks
from pipeline.errors import UserError
from pipeline.fingerprint import digest
from pipeline.frozen.models import content, identity
from pipeline.frozen.pixels import unsigned
from pipeline.frozen.text import TextEncoder, load_text_encoder
from pipeline.frozen.vae import Vae, load_vae
from pipeline.model import MicroDiT
from pipeline.reals import Real, captions_sha256
from pipeline.runtime import pick_device, pick_precision, progress
from pipeline.trained import Trained

FOLDER_IMAGES = 1000  # files a sub-folder
Maker = Callable[[list[int]], np.ndarray]  # indices to images [B, px, px, 3] uint8


@dataclass(frozen=True)
class Sampler:
    """Draws images for captions; `seed` and the index of a caption make its noise.

    `method` is one of diffusion.SAMPLERS, `interval` the noise levels at which guidance acts, None for all. The blocks of
    the network are compiled for batches of `compiled` images, which shorter ones are filled up to; 0: not compiled.
    """

    vae: Vae
    text_encoder: TextEncoder
    edm: EDM
    steps: int
    guidance: float
    seed: int
    device: torch.device
    precision: torch.dtype
    method: str = "heun"
    interval: tuple[float, float] | None = None
    compiled: int = 0
    backend: str = "inductor"  # of torch.compile
    purpose: str = "evaluation"  # of the noise: pictures of other prompts than the captions have their own

    @classmethod
    def load(cls, slice_: EvaluateSlice, settings: Settings, trained: Trained) -> "Sampler":
        """As configured. Raises: UserError if a frozen model is missing, or is not the one that it was trained with."""
        evaluation, models, runtime = slice_.evaluation, slice_.models, settings.runtime
        for name, ref in trained.frozen.items():
            if ref != (configured := getattr(models, name)):
                raise UserError(f"models.{name}: {configured}, but {trained.file.parent} was trained with {ref}; give that one")
        device = pick_device(runtime.device)
        compiles = runtime.compile == "on" or (runtime.compile == "auto" and device.type == "cuda")
        return cls(
            vae=load_vae(models.vae, device),
            text_encoder=load_text_encoder(models.text_encoder, models.text_tokens, device, trained.config.drop_text_padding),
            edm=trained.edm,
            steps=evaluation.steps,
            guidance=evaluation.guidance,
            seed=evaluation.seed,
            device=device,
            precision=pick_precision(runtime.precision, device),
            method=evaluation.sampler.name,
            interval=evaluation.sampler.interval,
            compiled=runtime.sample_batch if compiles else 0,
        )

    def maker(self, network: MicroDiT, captions: Sequence[str]) -> Maker:
        """Images of `network` for the captions at the given indices. The network is moved and compiled in place."""
        network = network.to(self.device).eval()
        if self.compiled and "forward" not in vars(network.final_layer):  # not yet: compiled blocks have one of their own
            compile_blocks(network, self.backend)
        return lambda indices: self._draw(network, captions, indices)

    @torch.inference_mode()
    def _draw(self, network: MicroDiT, captions: Sequence[str], indices: list[int]) -> np.ndarray:
        config = network.config
        shape = (config.in_channels, config.input_size, config.input_size)
        filled = indices + indices[-1:] * (self.compiled - len(indices))
        z = normals(self.seed, self.purpose, torch.tensor(filled), math.prod(shape)).unflatten(1, shape).to(self.device)
        text, _ = self.text_encoder.encode([captions[i] for i in filled])
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            latents = sample(
                network, z, text, self.edm, self.steps, self.guidance, network.encode_text,
                method=self.method, interval=self.interval,
            )  # fmt: skip
        return unsigned(self.vae.decode(latents[: len(indices)]))


def work_name(slice_: EvaluateSlice, weights_sha256: str, chosen: Sequence[Real]) -> str:
    """Samples are kept for as long as nothing changes that they depend on; scores may."""
    evaluation, models = slice_.evaluation, slice_.models
    differs = evaluation.sampler.results()  # from Heun's method with guidance at all levels
    return digest(
        {
            "weights": weights_sha256,
            "captions": captions_sha256(chosen),
            "sampler": [evaluation.steps, evaluation.guidance, evaluation.seed, *([differs] if differs else [])],
            "untrained": slice_.seed,
            "models": [content(identity(models.vae)), content(identity(models.text_encoder)), models.text_tokens],
        }
    )


@torch.inference_mode()
def reconstruct(vae: Vae, images: np.ndarray) -> np.ndarray:
    """Images [B, px, px, 3] uint8 through the autoencoder and back, by the mean of its posterior."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    side = images.shape[1] // vae.factor
    return unsigned(vae.decode(vae.encode(pixels, torch.zeros(len(images), vae.channels, side, side))))


class Part(NamedTuple):
    """The share of a folder's images that one of several jobs makes: whole batches, every `of`-th from `number` on."""

    number: int  # from 1
    of: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """`2/8`. Raises: UserError."""
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UserError(f"--part {text}: give the job's number and how many there are, such as 2/8")
        return cls(int(number), int(of))

    def after(self, batches: int) -> "Part":
        """The job's part of the next folder, where the dealing out goes on after so many batches of this one."""
        return Part((self.number - 1 - batches) % self.of + 1, self.of)


WHOLE = Part(1, 1)


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

    def batches(self, batch: int, part: Part = WHOLE) -> list[list[int]]:
        """Indices of a job's images, as they are made together."""
        starts = range(0, self.count, batch)[part.number - 1 :: part.of]
        return [list(range(start, min(start + batch, self.count))) for start in starts]

    def complete(self, make: Maker, batch: int, what: str, part: Part = WHOLE) -> int:
        """Make the images that are not there yet, `batch` at a time. Returns how many there were to make.

        A batch of which some are there is made as a whole, and those that are there are kept.
        """
        batches = self.batches(batch, part)
        missing = [[i for i in indices if not self.file(i).exists()] for indices in batches]
        total, made = sum(map(len, batches)), sum(map(len, missing))
        with progress(what, total, initial=total - made) as bar, ThreadPoolExecutor() as writers:
            for indices, absent in zip(batches, missing, strict=True):
                if absent:
                    images = dict(zip(indices, make(indices), strict=True))
                    list(writers.map(self._write, absent, [images[i] for i in absent]))
                    bar.update(len(absent))
        return made

    def _write(self, index: int, image: np.ndarray) -> None:
        with atomic(self.file(index)) as temporary:
            Image.fromarray(image).save(temporary, format="png")
