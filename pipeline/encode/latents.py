"""VAE latents of a shard at every resolution that is missing, from one reading of its images."""

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.artifacts import Sidecar, latents_schema
from pipeline.encode.samples import images_of
from pipeline.encode.shards import Bad, BlockWriter, Target, block_writer, to_half
from pipeline.errors import UserError
from pipeline.frozen.models import short_id
from pipeline.frozen.pixels import CROP, square, unit_tensor
from pipeline.runtime import pick_device, progress

if TYPE_CHECKING:
    import torch

    from pipeline.config.steps import EncodeSlice, Settings
    from pipeline.frozen.vae import Vae

PURPOSE = "vae-posterior"


def latents_target(folder: Path, shard: str, px: int, model: dict[str, Any], seed: int, images: Sidecar) -> Target:
    """{folder}/{px}-{id}/{shard}.arrow, the id from the model and all that decides its output."""
    name = f"{px}-{short_id(model, dtype='float16', crop=CROP, seed=seed)}"
    return Target(folder / name / f"{shard}.arrow", "latents", images.sha256("images"))


class Resolution:
    """The latents of one shard at one resolution, while they are made."""

    def __init__(self, target: Target, px: int, vae: "Vae", facts: dict[str, Any]) -> None:
        self.shape = (vae.channels, px // vae.factor, px // vae.factor)
        self._target, self._px, self._vae = target, px, vae
        self._facts = {**facts, "px": px, "dtype": "float16", "crop": CROP, "scaling_factor": vae.scaling}
        self._bad: Bad = {}

    def open(self) -> AbstractContextManager[BlockWriter]:
        return block_writer(self._target, latents_schema(self.shape, self._facts))

    def add(self, writer: BlockWriter, pictures: list[Image.Image], keys: list[str], first_row: int) -> None:
        """Encode a batch. A latent depends on its image and key, not on its batch."""
        images = unit_tensor([square(picture, self._px) for picture in pictures]) * 2 - 1
        noise = posterior_noise(self._facts["seed"], keys, self.shape, self._vae.device)
        half, bad = to_half(self._vae.encode(images, noise).cpu().numpy(), first_row)
        writer.add(keys, half)
        self._bad |= bad

    def describe(self, rows: int) -> Sidecar:
        return self._target.describe(rows, self.shape, self._bad, self._facts)


def write_latents(
    targets: dict[int, Target],
    model: dict[str, Any],
    slice_: "EncodeSlice",
    settings: "Settings",
    images: Sidecar,
    keys: list[str],
) -> dict[int, Sidecar]:
    """Encode the shard's images at each px of `targets`. Raises: UserError if the VAE does not divide a px."""
    from pipeline.frozen.vae import load_vae

    vae = load_vae(slice_.vae, pick_device(settings.runtime.device))
    for px in targets:
        if px % vae.factor:
            raise UserError(f"stages: px {px} is no multiple of {vae.factor}, by which model '{slice_.vae}' divides a side")
    made = {px: Resolution(target, px, vae, {"model": model, "seed": slice_.seed}) for px, target in targets.items()}
    _encode(list(made.values()), images_of(images.file("images"), keys), keys, settings.runtime.encode_batch)
    return {px: resolution.describe(len(keys)) for px, resolution in made.items()}


def _encode(resolutions: list[Resolution], pictures: Iterator[Image.Image], keys: list[str], size: int) -> None:
    with ExitStack() as stack, progress("latents", len(keys)) as bar:
        writers = [stack.enter_context(resolution.open()) for resolution in resolutions]
        done = 0
        while batch := list(itertools.islice(pictures, size)):  # to the end, where the reader compares the counts
            for resolution, writer in zip(resolutions, writers, strict=True):
                resolution.add(writer, batch, keys[done : done + len(batch)], done)
            done += len(batch)
            bar.update(len(batch))


def posterior_noise(seed: int, keys: list[str], shape: tuple[int, int, int], device: "torch.device") -> "torch.Tensor":
    """Standard normals [B, C, h, w], each sample's own: addressed by a hash of its key."""
    import torch

    from pipeline.diffusion.noise import normals

    positions = torch.tensor([key_position(key) for key in keys], dtype=torch.int64)
    return normals(seed, PURPOSE, positions, shape[0] * shape[1] * shape[2], device).reshape(-1, *shape)


def key_position(key: str) -> int:
    """63 bits of a key's sha256: a place in the stream of random numbers that never changes."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
