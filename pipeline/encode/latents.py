"""VAE latents of a shard at every resolution that is missing, from one reading of its images."""

import hashlib
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.artifacts import Sidecar, latents_schema
from pipeline.diffusion.noise import normals
from pipeline.encode.decoding import Decoder, workers_for
from pipeline.encode.overlap import Behind, Clock
from pipeline.encode.samples import samples_of
from pipeline.encode.shards import Bad, BlockWriter, Target, block_writer, to_half
from pipeline.errors import UserError
from pipeline.frozen.pixels import CROP, signed
from pipeline.frozen.vae import Vae, load_vae
from pipeline.runtime import pick_device, progress

if TYPE_CHECKING:
    import numpy as np

    from pipeline.config.steps import EncodeSlice, Settings

PURPOSE = "vae-posterior"


class Resolution:
    """The latents of one shard at one resolution, while they are made. With a `seed` among the `facts` they are samples of
    the posterior, else its mean, or what an autoencoder without one gives."""

    def __init__(self, target: Target, px: int, vae: Vae, facts: dict[str, Any]) -> None:
        self.px = px
        self.shape = (vae.channels, px // vae.factor, px // vae.factor)
        self._target, self._vae, self._seed = target, vae, facts.get("seed")
        shift = {"shift_factor": vae.shift} if vae.shift else {}
        self._facts = {**facts, "px": px, "dtype": "float16", "crop": CROP, "scaling_factor": vae.scaling, **shift}
        self._bad: Bad = {}
        self._rows = 0

    def open(self, stack: ExitStack) -> None:
        self._writer: BlockWriter = stack.enter_context(block_writer(self._target, latents_schema(self.shape, self._facts)))

    def encode(self, pixels: "np.ndarray", keys: list[str]) -> Tensor:
        """uint8 [B, px, px, 3] to latents [B, C, h, w] on the device. A latent depends on its image and key alone."""
        images, device = signed(pixels, self._vae.device), self._vae.device
        return self._vae.encode(images, None if self._seed is None else posterior_noise(self._seed, keys, self.shape, device))

    def write(self, latents: Tensor, keys: list[str]) -> None:
        """In fp16, from wherever they are."""
        half, bad = to_half(latents, self._rows)
        self._writer.add(keys, half.cpu().numpy())
        self._bad |= bad
        self._rows += len(keys)

    def describe(self) -> Sidecar:
        return self._target.describe(self._rows, self.shape, self._bad, self._facts)


def write_latents(
    targets: dict[int, Target],
    facts: dict[str, Any],
    slice_: "EncodeSlice",
    settings: "Settings",
    images: Sidecar,
    keys: list[str],
) -> dict[int, Sidecar]:
    """Encode the shard's images at each px of `targets`. `facts` name the model, and the seed where the posterior is
    sampled. Raises: UserError if the VAE does not divide a px."""
    runtime = settings.runtime
    vae = load_vae(slice_.vae, pick_device(runtime.device), getattr(torch, slice_.dtype))
    made = resolutions(targets, vae, facts, slice_.vae)
    with Decoder(workers_for(runtime.decode_workers, len(keys))) as decoder:
        encode_shard(list(made.values()), decoder, images, keys, runtime.encode_batch, Clock())
    return {px: resolution.describe() for px, resolution in made.items()}


def resolutions(targets: dict[int, Target], vae: Vae, facts: dict[str, Any], ref: str) -> dict[int, Resolution]:
    """Raises: UserError if the VAE does not divide a px."""
    for px in targets:
        if px % vae.factor:
            raise UserError(f"stages: px {px} is no multiple of {vae.factor}, by which model '{ref}' divides a side")
    return {px: Resolution(target, px, vae, facts) for px, target in targets.items()}


def encode_shard(made: list[Resolution], decoder: Decoder, images: Sidecar, keys: list[str], batch: int, clock: Clock) -> None:
    """Decode, encode and write a shard, all three at once. `clock` is told what the encoding thread does."""
    tar, sizes = images.file("images"), [resolution.px for resolution in made]
    with ExitStack() as stack:
        bar = stack.enter_context(progress(f"latents {images.path.stem}", len(keys)))
        for resolution in made:
            resolution.open(stack)
        behind = stack.enter_context(Behind())
        for squares in clock.waited("decoding", decoder.batches(tar, samples_of(tar, keys), sizes, batch)):
            for resolution in made:
                with clock("encoding"):
                    latents = resolution.encode(squares.pixels[resolution.px], squares.keys)
                with clock("writing"):
                    behind(resolution.write, latents, squares.keys)
            bar.set_postfix_str(f"waits for images {clock.share('decoding'):.0%}", refresh=False)
            bar.update(len(squares.keys))


def posterior_noise(seed: int, keys: list[str], shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Standard normals [B, C, h, w], each sample's own: addressed by a hash of its key."""
    positions = torch.tensor([key_position(key) for key in keys], dtype=torch.int64)
    return normals(seed, PURPOSE, positions, shape[0] * shape[1] * shape[2], device).reshape(-1, *shape)


def key_position(key: str) -> int:
    """63 bits of a key's sha256: a place in the stream of random numbers that never changes."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
