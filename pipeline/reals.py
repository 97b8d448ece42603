"""The evaluation set: real images in their order, and the first so many captions."""

import hashlib
import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.artifacts import read_sidecar
from pipeline.errors import UserError
from pipeline.fingerprint import canonical_json
from pipeline.frozen.pixels import CROP, square
from pipeline.metrics.fid import LEAST_IMAGES

PREPARATION = f"stored image, {CROP} crop to the sampled resolution, then the resize mode"


@dataclass(frozen=True)
class Real:
    """A real image, left where it lies in its shard until it is asked for."""

    key: str
    caption: str | None
    attributes: dict[str, Any] | None
    tar: Path
    offset: int  # of the encoded image in the tar, in bytes
    size: int

    @property
    def id(self) -> str:
        """The key, a number without leading zeros, so that COCO's ids are written in one way."""
        return str(int(self.key)) if self.key.isdecimal() else self.key

    def pixels(self, px: int) -> np.ndarray:
        """[px, px, 3] uint8: cropped as for training."""
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        with Image.open(io.BytesIO(content)) as image:
            return np.array(square(image, px))


def read_reals(images: list[Path], captions: list[Path]) -> list[Real]:
    """All images of the evaluation source, from aligned sidecars of shards and captions; of several captions an image has
    its first. They are in the order of their ids, those of COCO in the order of the file of ids where there is one: its
    shards, one after the other, have that order.

    Raises: UserError if the captions are not those of the shard.
    """
    if len(images) != len(captions):
        raise UserError(f"evaluate: {len(images)} sidecars of images, {len(captions)} of captions; give one for each shard")
    reals = [real for pair in sorted(zip(images, captions, strict=True)) for real in _read_shard(*pair)]
    kinds = {read_sidecar(path, "images").info.get("source_kind") for path in images}
    return reals if kinds == {"coco"} else _by_id(reals)


def _by_id(reals: list[Real]) -> list[Real]:
    return sorted(reals, key=lambda real: _natural(real.key))


def _natural(key: str) -> list[Any]:
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", key))]


def _read_shard(images: Path, captions: Path) -> Iterator[Real]:
    tar = read_sidecar(images, "images").checked("images")
    texts = read_sidecar(captions, "captions").table("captions", ["key", "caption"]).to_pylist()
    samples = list(_samples(tar))
    firsts = [next(rows) for _, rows in itertools.groupby(texts, key=lambda row: row["key"])]
    if [meta["key"] for meta, _ in samples] != [row["key"] for row in firsts]:
        raise UserError(f"{captions}: its keys are not those of {tar} in order; delete it and run again")
    for (meta, member), row in zip(samples, firsts, strict=True):
        yield Real(meta["key"], row["caption"], meta.get("attributes"), tar, member.offset_data, member.size)


def _samples(tar: Path) -> Iterator[tuple[dict[str, Any], tarfile.TarInfo]]:
    """Metadata and image member of every sample; a sample's members stand next to each other, in any order."""
    meta, image = None, None
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.name.endswith(".json"):
                meta = json.load(archive.extractfile(member))
            else:
                image = member
            if meta is not None and image is not None:
                yield meta, image
                meta, image = None, None


def with_captions(reals: list[Real], count: int | None) -> list[Real]:
    """The first `count` images with a caption, or all of them. Raises: UserError if there are too few."""
    captioned = [real for real in reals if real.caption]
    if len(captioned) < (count or LEAST_IMAGES):
        raise UserError(
            f"evaluation.images: {count or 'all'}, but only {len(captioned)} of the {len(reals)} images of the "
            f"evaluation set have a caption; give at least {count or LEAST_IMAGES}, or lower it to what there is"
        )
    return captioned[:count]


def ids_sha256(reals: list[Real]) -> str:
    """Hash of the image ids, one a line, ascending: which images they are, in whatever order."""
    return order_sha256(_by_id(reals))


def order_sha256(reals: list[Real]) -> str:
    """Hash of the image ids, one a line, in their order."""
    return hashlib.sha256("\n".join(real.id for real in reals).encode()).hexdigest()


def captions_sha256(reals: list[Real]) -> str:
    """Hash of the image ids with their captions, in their order."""
    return hashlib.sha256(canonical_json([[real.id, real.caption] for real in reals]).encode()).hexdigest()
