"""Latents at every resolution and text embeddings of one shard: a latent an image, an embedding a caption.

What exists for the same input and model is kept: a new resolution encodes only that, new captions only the text. The
sidecar names all files of the shard, whether made now or before.
"""

import os
from pathlib import Path
from typing import Any

from pipeline.artifacts import Sidecar, read_sidecar, write_json
from pipeline.config.steps import EncodeSlice, Settings
from pipeline.encode.samples import captions_of, image_keys
from pipeline.encode.shards import Target
from pipeline.encode.targets import latents_facts, latents_target, text_target
from pipeline.frozen.families import computed_in
from pipeline.frozen.models import identity

LATENTS_FACTS = ("shape", "buckets", "scaling_factor", "shift_factor", "posterior", "bad_rows")
TEXT_FACTS = ("shape", "bad_rows", "padding", "tokens_stored", "tokens_padded", "computed_in")


def run(slice_: EncodeSlice, settings: Settings, images: Path, captions: Path, latents: Path, text: Path, out: Path) -> None:
    """Write the sidecar `out` of kind "encoded", and what is missing under the folders `latents` and `text`."""
    pictures, captioned = read_sidecar(images, "images"), read_sidecar(captions, "captions")
    keys, texts = captions_of(captioned, pictures)
    vae, encoder = identity(slice_.vae), identity(slice_.text_encoder)

    wanted = text_target(text, out.stem, slice_, encoder, captioned)
    targets = {px: latents_target(latents, out.stem, px, vae, slice_, pictures) for px in slice_.resolutions}
    made_text = wanted.existing() or _write_text(wanted, encoder, slice_, settings, keys, texts)
    made = {px: found for px, target in targets.items() if (found := target.existing())}
    if missing := {px: target for px, target in targets.items() if px not in made}:
        made |= _write_latents(missing, vae, slice_, settings, pictures, image_keys(keys))
    inputs = {"images": _input(pictures, "images", out.parent), "captions": _input(captioned, "captions", out.parent)}
    facts = {**inputs, "vae": vae, "text_encoder": encoder}
    _write_sidecar(out, slice_, {px: made[px] for px in slice_.resolutions}, made_text, facts)


def _write_text(target: Target, model: dict[str, Any], *arguments: Any) -> Sidecar:
    from pipeline.encode.text import write_text  # torch, which a shard that is done does not need

    return write_text(target, model, *arguments)


def _write_latents(targets: dict[int, Target], model: dict[str, Any], slice_: EncodeSlice, *arguments: Any) -> dict[int, Sidecar]:
    from pipeline.encode.latents import write_latents

    return write_latents(targets, {"model": model, **latents_facts(model, slice_)}, slice_, *arguments)


def _write_sidecar(out: Path, slice_: EncodeSlice, latents: dict[int, Sidecar], text: Sidecar, facts: dict[str, Any]) -> None:
    files = {"text": _moved(text, "text", out.parent)}
    files |= {f"latents-{px}": _moved(made, "latents", out.parent) for px, made in latents.items()}
    # Said where models.dtype is not the default: an autoencoder may ask for another.
    dtypes = {} if slice_.dtype == "float32" else {"computed_in": computed_in(slice_.vae, slice_.dtype)}
    storage = {} if slice_.text_storage == "float16" else {"storage": slice_.text_storage}
    info = {
        "source": out.parent.name,
        "shard": out.stem,
        **facts,
        "latents": {str(px): {**_facts(made, LATENTS_FACTS), **dtypes} for px, made in latents.items()},
        "text": {"padding": "attend", **_facts(text, TEXT_FACTS), **storage},
    }
    write_json(out, {"kind": "encoded", "files": files, "info": info})


def _facts(made: Sidecar, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: made.info[name] for name in names if name in made.info}


def _input(sidecar: Sidecar, name: str, folder: Path) -> dict[str, str]:
    """Where the sidecar of an input lies, and the hash of the file that was read."""
    return {"path": os.path.relpath(sidecar.path, folder), "sha256": sidecar.sha256(name)}


def _moved(sidecar: Sidecar, name: str, folder: Path) -> dict[str, Any]:
    """A file's record with its path relative to another folder; the hash is known, the file is not read again."""
    return {**sidecar.files[name], "path": os.path.relpath(sidecar.file(name), folder)}
