"""Latents at every resolution and text embeddings of one shard: a latent an image, an embedding a caption.

What exists for the same input and model is kept: a new resolution encodes only that, new captions only the text. The
sidecar names all files of the shard, whether made now or before.
"""

import os
from pathlib import Path
from typing import Any

from pipeline.artifacts import Sidecar, read_sidecar, write_json
from pipeline.config.steps import EncodeSlice, Settings
from pipeline.encode.latents import latents_target, write_latents
from pipeline.encode.samples import captions_of, image_keys
from pipeline.encode.text import text_target, write_text
from pipeline.frozen.models import identity

TEXT_FACTS = ("shape", "bad_rows", "padding", "tokens_stored", "tokens_padded")  # the last three where padding is dropped


def run(slice_: EncodeSlice, settings: Settings, images: Path, captions: Path, latents: Path, text: Path, out: Path) -> None:
    """Write the sidecar `out` of kind "encoded", and what is missing under the folders `latents` and `text`."""
    pictures, captioned = read_sidecar(images, "images"), read_sidecar(captions, "captions")
    keys, texts = captions_of(captioned, pictures)
    vae, encoder = identity(slice_.vae), identity(slice_.text_encoder)

    wanted = text_target(text, out.stem, slice_, encoder, captioned)
    made_text = wanted.existing() or write_text(wanted, encoder, slice_, settings, keys, texts)

    targets = {px: latents_target(latents, out.stem, px, vae, slice_.seed, pictures) for px in slice_.resolutions}
    made = {px: found for px, target in targets.items() if (found := target.existing())}
    if missing := {px: target for px, target in targets.items() if px not in made}:
        made |= write_latents(missing, vae, slice_, settings, pictures, image_keys(keys))
    inputs = {"images": _input(pictures, "images", out.parent), "captions": _input(captioned, "captions", out.parent)}
    models = {"vae": vae, "text_encoder": encoder}
    _write_sidecar(out, {px: made[px] for px in slice_.resolutions}, made_text, {**inputs, **models})


def _write_sidecar(out: Path, latents: dict[int, Sidecar], text: Sidecar, facts: dict[str, Any]) -> None:
    files = {"text": _moved(text, "text", out.parent)}
    files |= {f"latents-{px}": _moved(made, "latents", out.parent) for px, made in latents.items()}
    info = {
        "source": out.parent.name,
        "shard": out.stem,
        **facts,
        "latents": {str(px): _facts(made, "shape", "scaling_factor", "bad_rows") for px, made in latents.items()},
        "text": {"padding": "attend", **_facts(text, *(name for name in TEXT_FACTS if name in text.info))},
    }
    write_json(out, {"kind": "encoded", "files": files, "info": info})


def _facts(made: Sidecar, *names: str) -> dict[str, Any]:
    return {name: made.info[name] for name in names}


def _input(sidecar: Sidecar, name: str, folder: Path) -> dict[str, str]:
    """Where the sidecar of an input lies, and the hash of the file that was read."""
    return {"path": os.path.relpath(sidecar.path, folder), "sha256": sidecar.sha256(name)}


def _moved(sidecar: Sidecar, name: str, folder: Path) -> dict[str, Any]:
    """A file's record with its path relative to another folder; the hash is known, the file is not read again."""
    return {**sidecar.files[name], "path": os.path.relpath(sidecar.file(name), folder)}
