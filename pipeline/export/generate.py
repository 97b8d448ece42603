"""Draw pictures for prompts with a trained model folder.

Noise is addressed by (seed, image number), so a picture does not depend on the batch size or on the prompts after it.
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.artifacts import atomic
from pipeline.diffusion import EDM, SAMPLERS
from pipeline.errors import UserError
from pipeline.export.drawing import draw_latents, noise_of, to_pictures
from pipeline.export.folder import INDEX, ModelFolder, load_model_folder, read_index
from pipeline.frozen.text import TextEncoder, load_text_encoder
from pipeline.frozen.vae import Vae, load_vae
from pipeline.model import MicroDiT, MicroDiTConfig, at_resolution, weights_at
from pipeline.runtime import pick_device, progress

SLUG_LENGTH = 48
# What the official checkpoints were trained with: named in errors, never chosen for the user.
PAPER_VAE = "the SDXL VAE"
PAPER_TEXT_ENCODER = "apple/DFN5B-CLIP-ViT-H-14-378"
GAP_PX = 2  # white space between the pictures of a grid


@dataclass(frozen=True)
class Drawing:
    """One picture to draw: its number, which addresses its noise, and its prompt."""

    number: int
    prompt: str


def run(
    prompts: Sequence[str],
    out: Path,
    model: Path,
    sampler: dict[str, Any],
    *,
    seed: int,
    batch: int,
    count: int,
    px: int | None,
    device: str,
) -> None:
    """`count` pictures of each prompt. One picture or a grid where `out` ends in .png, else a folder of PNGs.

    `sampler`: steps, guidance and method; those of the model's own that are None.
    The prompt and the sampler's settings are written into the PNGs as text.
    Raises: UserError for a missing model, an empty prompt, a resolution the model cannot draw, or an unusable `out`.
    """
    given = {name: value for name, value in sampler.items() if value is not None}
    _check(prompts, out, model, given)
    drawings = [Drawing(i, prompt) for i, prompt in enumerate(p for p in prompts for _ in range(count))]
    artist = Artist.load(model, px, pick_device(device))
    artist = replace(artist, sampler=artist.sampler | given)
    settings = {"seed": seed, **artist.sampler, "px": artist.px}
    pictures = artist.draw(drawings, batch, seed, artist.sampler["steps"], artist.sampler["guidance"])
    if out.suffix.lower() != ".png":
        for drawing, picture in pictures:
            _save(picture, out / file_name(drawing), {"prompt": drawing.prompt, "number": drawing.number, **settings})
        return
    columns = count if len(prompts) > 1 and count > 1 else math.ceil(math.sqrt(len(drawings)))
    whole = grid([picture for _, picture in pictures], columns)
    _save(whole, out, {"prompt": "\n".join(prompts), **settings})


@dataclass(frozen=True)
class Artist:
    """A trained network, ready to draw at `px` pixels, with its frozen models."""

    network: MicroDiT
    edm: EDM
    text_encoder: TextEncoder
    vae: Vae
    sampler: dict[str, Any]
    px: int
    device: torch.device

    @classmethod
    def load(cls, folder: Path, px: int | None, device: torch.device) -> "Artist":
        """Raises: UserError if the folder or a frozen model it names is missing, or it cannot draw at `px`."""
        model = load_model_folder(folder)
        vae, text_encoder = _frozen(folder, model, device)
        _check_fit(folder, model.config, vae, text_encoder)
        config, state, trained_px = model.config, model.state, model.config.input_size * vae.factor
        px = px or trained_px
        if px % (vae.factor * config.patch_size):
            multiple = vae.factor * config.patch_size
            raise UserError(f"--px {px}: must be a multiple of {multiple}; the model was trained at {trained_px}")
        if px != trained_px:
            config = at_resolution(config, px // vae.factor)
            state = weights_at(config, state)
        network = MicroDiT.from_state(config, state).to(device, torch.float32).eval()  # imported ones may be halves
        return cls(network, model.edm, text_encoder, vae, model.info["sampler"], px, device)

    def draw(self, drawings: Sequence[Drawing], batch: int, *settings: Any) -> Iterator[tuple[Drawing, Image.Image]]:
        """Pictures in the order of `drawings`, `batch` at a time."""
        with progress("drawing", len(drawings)) as bar:
            for start in range(0, len(drawings), batch):
                part = drawings[start : start + batch]
                pictures = self._batch(part, *settings)
                yield from zip(part, pictures, strict=True)
                bar.update(len(part))

    @torch.inference_mode()
    def _batch(self, drawings: Sequence[Drawing], seed: int, steps: int, guidance: float) -> list[Image.Image]:
        config = self.network.config
        shape = (config.in_channels, config.input_size, config.input_size)
        noise = noise_of(shape, seed, [drawing.number for drawing in drawings]).to(self.device)
        text, _ = self.text_encoder.encode([drawing.prompt for drawing in drawings])
        sampler = {**self.sampler, "steps": steps, "guidance": guidance}
        return to_pictures(self.vae.decode(draw_latents(self.network, self.edm, noise, text, sampler)))


def _frozen(folder: Path, model: ModelFolder, device: torch.device) -> tuple[Vae, TextEncoder]:
    """In the folder, or where its references say."""
    for key, example in (("vae", PAPER_VAE), ("text_encoder", PAPER_TEXT_ENCODER)):
        if not model.frozen[key]:
            raise UserError(
                f'{folder / INDEX}: frozen.{key} is not named; put "hf:OWNER/NAME@COMMIT" or a local folder there, '
                f"the one that the model was trained with (official checkpoints: {example})"
            )
    config = model.config
    text_encoder = load_text_encoder(model.frozen["text_encoder"], config.caption_length, device, config.drop_text_padding)
    return load_vae(model.frozen["vae"], device), text_encoder


def _check_fit(folder: Path, config: MicroDiTConfig, vae: Vae, text_encoder: TextEncoder) -> None:
    """Raises: UserError if the frozen models' latents or text have another width than the network takes."""
    for key, found, needed, what in (
        ("vae", vae.channels, config.in_channels, "latent channels"),
        ("text_encoder", text_encoder.shape[1], config.caption_channels, "values a token"),
    ):
        if found != needed:
            raise UserError(
                f"{folder / INDEX}: {key} gives {found} {what}, the model takes {needed}; name the one it was trained with"
            )


def _check(prompts: Sequence[str], out: Path, model: Path, sampler: dict[str, Any]) -> None:
    if not prompts:
        raise UserError("no prompt; say what to draw")
    for place, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise UserError(f"prompt {place}: is empty; say what to draw")
    if (steps := sampler.get("steps", 2)) < 2:
        raise UserError(f"--steps {steps}: at least 2 are needed")
    if (method := sampler.get("method", "heun")) not in SAMPLERS:
        raise UserError(f"--sampler {method}: not known; give one of {', '.join(SAMPLERS)}")
    if out.suffix.lower() != ".png" and out.suffix.lower() in Image.registered_extensions():
        raise UserError(f"--out {out}: pictures are written as .png; end it so, or name a folder")
    _check_writable(out)
    if not model.is_dir() or not any(model.iterdir()):
        raise UserError(
            f"{model / INDEX}: no trained model here; `make demo` or "
            "`snakemake --cores all results/model/model_index.json` trains one, --model names another"
        )
    read_index(model)


def _check_writable(out: Path) -> None:
    """Before any time is spent on sampling."""
    if out.suffix.lower() == ".png" and out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a file")
    place = out if out.suffix.lower() != ".png" else out.parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"--out {out}: cannot be written, {place} is {'read-only' if place.is_dir() else 'a file'}")


def file_name(drawing: Drawing) -> str:
    """`00003-a-red-circle.png`: the number, and the prompt's first letters and digits."""
    words = re.sub(r"[^\w]+", "-", drawing.prompt.lower()).strip("-_")
    return f"{drawing.number:05d}-{words[:SLUG_LENGTH].rstrip('-_')}".rstrip("-") + ".png"


def grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size in rows of `columns`, on white. A single one comes back as it is."""
    if len(pictures) == 1:
        return pictures[0]
    width, height = (side + GAP_PX for side in pictures[0].size)
    rows = math.ceil(len(pictures) / columns)
    whole = Image.new("RGB", (columns * width - GAP_PX, rows * height - GAP_PX), "white")
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i % columns * width, i // columns * height))
    return whole


def _save(picture: Image.Image, path: Path, notes: dict[str, Any]) -> None:
    text = PngInfo()
    for name, value in notes.items():
        text.add_itxt(name, str(value))
    with atomic(path) as temporary:
        picture.save(temporary, format="png", pnginfo=text)
