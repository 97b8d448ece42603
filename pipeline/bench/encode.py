"""How fast a shard is encoded: decoding, the autoencoder, the text encoder and writing alone, and all of it together.

Images are drawn here and stored as JPEG, each with a caption. `encoder_waits` is the share of the time in which the
autoencoder had nothing to do while the shard went through the step: it waited for images, or for the disk.
"""

import argparse
import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.artifacts import Sidecar, write_sidecar
from pipeline.encode.decoding import Decoder, Squares, workers_for
from pipeline.encode.latents import Resolution, encode_shard, resolutions
from pipeline.encode.overlap import Clock
from pipeline.encode.samples import samples_of
from pipeline.encode.shards import Target
from pipeline.encode.text import encode_text
from pipeline.frozen.text import TextEncoder, load_text_encoder
from pipeline.frozen.vae import Vae, load_vae
from pipeline.runtime import device_name, pick_device

WORDS = ("a", "the", "red", "green", "blue", "small", "large", "dog", "cat", "house", "tree", "river", "on", "in")


def main(argv: list[str]) -> int:
    """Measure and print one JSON object. Raises: UserError for models that cannot be loaded."""
    options = _parser().parse_args(argv)
    device, dtype = pick_device(options.device), getattr(torch, options.dtype)
    vae = _random_vae(options.vae_channels, device, dtype) if options.vae_channels else load_vae(options.vae, device, dtype)
    encoder = load_text_encoder(options.text_encoder, options.tokens, device, dtype=dtype)
    with tempfile.TemporaryDirectory(prefix="encode-", dir=options.folder) as folder:
        bench = Bench(
            Path(folder), vae, encoder, options.px, options.batch, draw_shard(Path(folder), options.images, options.side)
        )
        result = bench.measure(workers_for(options.workers, options.images))
    print(json.dumps(result | {"images": options.images, "side": options.side}, indent=1))
    return 0


class DeviceClock(Clock):
    """A piece of work ends when the device is done with it."""

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        with super().__call__(what):
            yield
            if torch.cuda.is_available():
                torch.cuda.synchronize()


@dataclass(frozen=True)
class Bench:
    """A shard, the models, and the sizes to encode it at."""

    folder: Path
    vae: Vae
    encoder: TextEncoder
    px: list[int]
    batch: int
    shard: "Shard"

    def measure(self, workers: int) -> dict[str, Any]:
        """Images, or captions, a second of each part and of the whole. The first batch of each does not count."""
        images, keys = self.shard.images, self.shard.keys
        with Decoder(workers) as decoder:
            ready = list(self._decoded(decoder))  # which starts the processes
            made = self._made()
            latents = {r.px: r.encode(ready[0].pixels[r.px], ready[0].keys).cpu() for r in made}
            self.encoder.encode(self.shard.captions[: self.batch])
            clock, whole = DeviceClock(), DeviceClock()
            for part, work in (
                ("decoding", lambda: list(self._decoded(decoder))),
                ("encoder", lambda: [r.encode(squares.pixels[r.px], squares.keys) for squares in ready for r in made]),
                ("text", self._write_text),
                ("writing", lambda: self._write(made, latents)),
                ("latents", lambda: encode_shard(self._made(), decoder, images, keys, self.batch, whole)),
            ):
                with clock(part):
                    work()
        spent = {**clock.seconds, "whole": clock.seconds["latents"] + clock.seconds["text"]}
        speeds = {f"{part}_per_second": round(len(keys) / seconds, 1) for part, seconds in spent.items()}
        return speeds | {"encoder_waits": round(1 - whole.seconds["encoding"] / spent["latents"], 4)} | self._facts(workers)

    def _facts(self, workers: int) -> dict[str, Any]:
        return {
            "px": self.px,
            "batch": self.batch,
            "workers": workers,
            "threads": torch.get_num_threads(),
            "device": device_name(self.vae.device),
            "dtype": str(self.vae.dtype).removeprefix("torch."),
            "latent_shapes": [resolution.shape for resolution in self._made()],
            "text_shape": self.encoder.shape,
        }

    def _decoded(self, decoder: Decoder) -> Iterator[Squares]:
        tar = self.shard.images.file("images")
        return decoder.batches(tar, samples_of(tar, self.shard.keys), self.px, self.batch)

    def _made(self) -> list[Resolution]:
        targets = {px: Target(self.folder / f"latents-{px}.arrow", "latents", "") for px in self.px}
        return list(resolutions(targets, self.vae, {"seed": 0}, "of the bench", self.batch).values())

    def _write(self, made: list[Resolution], latents: dict[int, torch.Tensor]) -> None:
        with ExitStack() as stack:
            for resolution in made:
                resolution.open(stack)
                for start in range(0, len(self.shard.keys), self.batch):
                    keys = self.shard.keys[start : start + self.batch]
                    resolution.write(latents[resolution.px][: len(keys)], keys)

    def _write_text(self) -> None:
        target, facts = Target(self.folder / "text.arrow", "text", ""), {"dtype": "float16"}
        encode_text(target, self.encoder, facts, self.shard.keys, self.shard.captions, self.batch)


@dataclass(frozen=True)
class Shard:
    """Images in a tar, and their captions."""

    images: Sidecar
    keys: list[str]
    captions: list[str]


def draw_shard(folder: Path, count: int, side: int) -> Shard:
    """Smooth colours with some grain, so that a JPEG of 512 px has about as many bytes as a photo's."""
    keys = [f"{number:06d}" for number in range(count)]
    tar = folder / "00000.tar"
    with tarfile.open(tar, "w") as archive:
        for key in keys:
            for suffix, data in (("jpg", jpeg(int(key), side)), ("json", json.dumps({"key": key}).encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    random = np.random.default_rng(count)
    captions = [" ".join(random.choice(WORDS, random.integers(4, 20))) for _ in keys]
    return Shard(write_sidecar(folder / "00000.json", "images", {"images": (tar, count)}, {}), keys, captions)


def jpeg(number: int, side: int) -> bytes:
    """A picture of its own for every number."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    grainy = np.asarray(coarse, np.int16) + random.integers(-12, 13, (side, side, 1), np.int16)
    data = io.BytesIO()
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
    return data.getvalue()


def _random_vae(channels: list[int], device: torch.device, dtype: torch.dtype) -> Vae:
    """Stable Diffusion's architecture (AutoencoderKL, two layers a block, attention in the middle) with random weights."""
    from diffusers import AutoencoderKL

    blocks = len(channels)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks}
    model = AutoencoderKL(**kinds, block_out_channels=channels, layers_per_block=2, norm_num_groups=min(32, channels[0]))
    model = model.to(device, dtype, memory_format=torch.channels_last if device.type == "cuda" else torch.preserve_format)
    return Vae(model.eval().requires_grad_(False))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline bench encode", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512, help="images of the shard")
    parser.add_argument("--side", type=int, default=512, help="their side in pixels")
    parser.add_argument("--px", type=int, nargs="+", default=[256], help="resolutions to encode at")
    parser.add_argument("--vae", default="embedded:vae", help="as models.vae")
    parser.add_argument(
        "--vae-channels", type=int, nargs="+", help="instead: random weights in Stable Diffusion's architecture, 128 256 512 512"
    )
    parser.add_argument("--text-encoder", default="embedded:clip", help="as models.text_encoder")
    parser.add_argument("--tokens", type=int, help="as models.text_tokens")
    parser.add_argument("--batch", type=int, default=64, help="as runtime.encode_batch")
    parser.add_argument("--workers", type=int, help="as runtime.decode_workers; by the cores unless given")
    parser.add_argument("--device", default="auto", help="as runtime.device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="as models.dtype")
    parser.add_argument("--folder", type=Path, help="where to write; what is written is removed afterwards")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
