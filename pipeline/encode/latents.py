"""VAE latents of a shard at every resolution that is missing, from one reading of its images."""

import hashlib
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import Sidecar, latents_schema
from pipeline.diffusion.noise import normals
from pipeline.encode.buckets import Buckets, step_of
from pipeline.encode.decoding import Crop, Decoder, workers_for
from pipeline.encode.overlap import Behind, Clock
from pipeline.encode.samples import samples_of
from pipeline.encode.shards import Bad, BlockWriter, Target, block_writer, to_half
from pipeline.errors import UserError
from pipeline.frozen.pixels import CROP, signed
from pipeline.frozen.vae import Vae, load_vae
from pipeline.runtime import pick_device, progress

if TYPE_CHECKING:
    from pipeline.config.steps import EncodeSlice, Settings

PURPOSE = "vae-posterior"
GATHERED = 4  # batches of images that are put in order of their buckets at a time: full batches, and little memory


class Resolution:
    """The latents of one shard at one resolution, while they are made. With a `seed` among the `facts` they are samples of
    the posterior, else its mean, or what an autoencoder without one gives."""

    def __init__(self, target: Target, px: int, vae: Vae, facts: dict[str, Any]) -> None:
        self.px = px
        self.crop: Crop = px
        self.shape = (vae.channels, px // vae.factor, px // vae.factor)
        self._target, self._vae, self._seed = target, vae, facts.get("seed")
        shift = {"shift_factor": vae.shift} if vae.shift else {}
        self._facts = {**facts, "px": px, "dtype": "float16", "crop": CROP, "scaling_factor": vae.scaling, **shift}
        self._bad: Bad = {}
        self._rows = 0

    def open(self, stack: ExitStack) -> None:
        self._writer: BlockWriter = stack.enter_context(block_writer(self._target, latents_schema(self.shape, self._facts)))

    def encode(self, pixels: np.ndarray, keys: list[str]) -> Tensor:
        """uint8 [B, px, px, 3] to latents [B, C, h, w] on the device. A latent depends on its image and key alone."""
        return self._vae.encode(signed(pixels, self._vae.device), self._noise(keys, self.shape))

    def _noise(self, keys: list[str], shape: tuple[int, int, int]) -> Tensor | None:
        return None if self._seed is None else posterior_noise(self._seed, keys, shape, self._vae.device)

    def write(self, latents: Tensor, keys: list[str]) -> None:
        """In fp16, from wherever they are."""
        half, bad = to_half(latents, self._rows)
        self._writer.add(keys, half.cpu().numpy())
        self._bad |= bad
        self._rows += len(keys)

    def describe(self) -> Sidecar:
        return self._target.describe(self._rows, self.shape, self._bad, self._facts)


class Part(NamedTuple):
    """Latents of one bucket among those of a batch."""

    bucket: int
    places: list[int]  # in the batch
    latents: Tensor  # [places, C, h, w]


class Bucketed(Resolution):
    """As `Resolution`, of images in the sizes of `buckets`, at most `batch` at a time. `shape` is that of the square, which
    has the most values."""

    def __init__(self, target: Target, px: int, vae: Vae, facts: dict[str, Any], buckets: Buckets, batch: int) -> None:
        super().__init__(target, px, vae, facts)
        self.crop = self._buckets = buckets
        self._batch = batch
        self._shapes = [(size.height // vae.factor, size.width // vae.factor) for size in buckets.sizes]
        self._facts |= {"crop": facts["crop"], "buckets": self._shapes}

    def encode(self, pixels: list[np.ndarray], keys: list[str]) -> list[Part]:
        """B arrays uint8 [height, width, 3] to their latents, on the device."""
        numbers = [self._buckets.number(width, height) for height, width, _ in (image.shape for image in pixels)]
        parts = []
        for bucket in sorted(set(numbers)):
            members = [place for place, number in enumerate(numbers) if number == bucket]
            cuts = range(0, len(members), self._batch)
            parts += [self._encode(bucket, members[cut : cut + self._batch], pixels, keys) for cut in cuts]
        return parts

    def _encode(self, bucket: int, places: list[int], pixels: list[np.ndarray], keys: list[str]) -> Part:
        images = signed(np.stack([pixels[place] for place in places]), self._vae.device)
        shape = (self._vae.channels, *self._shapes[bucket])
        noise = self._noise([keys[place] for place in places], shape)
        return Part(bucket, places, self._vae.encode(images, noise))

    def write(self, parts: list[Part], keys: list[str]) -> None:
        """In fp16 and in the order of `keys`, from wherever they are."""
        rows, buckets = [np.empty(0)] * len(keys), np.zeros(len(keys), np.int16)
        for bucket, places, latents in parts:
            half, bad = to_half(latents, 0)
            self._bad |= {str(self._rows + places[int(row)]): reason for row, reason in bad.items()}
            for place, values in zip(places, half.cpu().numpy(), strict=True):
                rows[place], buckets[place] = values, bucket
        self._bad = dict(sorted(self._bad.items(), key=lambda item: int(item[0])))
        self._writer.add(keys, rows, buckets)
        self._rows += len(keys)


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
    made = resolutions(targets, vae, facts, slice_.vae, runtime.encode_batch)
    with Decoder(workers_for(runtime.decode_workers, len(keys))) as decoder:
        encode_shard(list(made.values()), decoder, images, keys, runtime.encode_batch, Clock())
    return {px: resolution.describe() for px, resolution in made.items()}


def resolutions(targets: dict[int, Target], vae: Vae, facts: dict[str, Any], ref: str, batch: int) -> dict[int, Resolution]:
    """Of squares, or of buckets where the `facts` have a `max_aspect`. Raises: UserError if the VAE does not divide a px."""
    for px in targets:
        if px % vae.factor:
            raise UserError(f"stages: px {px} is no multiple of {vae.factor}, by which model '{ref}' divides a side")
    if "max_aspect" not in facts:
        return {px: Resolution(target, px, vae, facts) for px, target in targets.items()}
    steps = {px: step_of(px, vae.factor, facts["bucket_step"]) for px in targets}
    buckets = {px: Buckets.of(px, step, facts["max_aspect"]) for px, step in steps.items()}
    return {px: Bucketed(target, px, vae, facts, buckets[px], batch) for px, target in targets.items()}


def encode_shard(made: list[Resolution], decoder: Decoder, images: Sidecar, keys: list[str], batch: int, clock: Clock) -> None:
    """Decode, encode and write a shard, all three at once. `clock` is told what the encoding thread does."""
    tar, crops = images.checked("images"), [resolution.crop for resolution in made]
    gathered = GATHERED * batch if any(isinstance(crop, Buckets) for crop in crops) else batch
    with ExitStack() as stack:
        bar = stack.enter_context(progress(f"latents {images.path.stem}", len(keys)))
        for resolution in made:
            resolution.open(stack)
        behind = stack.enter_context(Behind())
        for squares in clock.waited("decoding", decoder.batches(tar, samples_of(tar, keys), crops, gathered)):
            for resolution in made:
                with clock("encoding"):
                    latents = resolution.encode(squares.pixels[resolution.crop], squares.keys)
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
