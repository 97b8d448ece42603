"""Reading a shard: its images with webdataset, its captions from the table beside them."""

import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.artifacts import Sidecar
from pipeline.errors import UserError


def captions_of(captions: Sidecar, images: Sidecar) -> tuple[list[str], list[str]]:
    """Keys and captions, "" where there is none: those of an image next to each other, in the shard's order.

    Raises: UserError if the table is of another number of images than the shard has.
    """
    file = captions.file("captions")
    table = captions.table("captions", ["key", "caption"])
    keys = table["key"].to_pylist()
    found, there = len(image_keys(keys)), images.rows("images")
    if found != there:
        raise UserError(f"{file}: captions of {found} images, but {images.path} has {there}; run caption again")
    return keys, [caption or "" for caption in table["caption"].to_pylist()]


def image_keys(keys: list[str]) -> list[str]:
    """The keys of captions to those of their images: each once."""
    return [key for key, _ in itertools.groupby(keys)]


def samples_of(tar: Path, keys: list[str]) -> Iterator[tuple[str, bytes]]:
    """Keys and encoded images of a shard, in its order.

    Raises: UserError if the keys are not `keys`, or the shard cannot be read.
    """
    row = -1
    for row, sample in enumerate(_samples(tar)):
        key = _key(tar, sample)
        if row >= len(keys) or key != keys[row]:
            raise UserError(f"{tar}: row {row} is '{key}', but the captions are of other images; run caption again")
        yield key, sample["jpg"] if "jpg" in sample else sample["png"]
    if row + 1 != len(keys):
        raise UserError(f"{tar}: {row + 1} images, but {len(keys)} captions; run collect and caption again")


def _key(tar: Path, sample: dict[str, bytes]) -> str:
    try:
        if not sample.keys() & {"jpg", "png"}:
            raise KeyError("no image")
        return json.loads(sample["json"])["key"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{tar}: holds what is no sample ({error}); the shard is damaged, collect it again") from error


def _samples(tar: Path) -> Iterator[dict[str, bytes]]:
    from webdataset.tariterators import group_by_keys, tar_file_expander  # imports torch

    try:
        with open(tar, "rb") as stream:  # opened here: webdataset takes a path for a URL, and a space in it for %20
            yield from group_by_keys(tar_file_expander([{"url": str(tar), "stream": stream}]))
    except (OSError, ValueError, tarfile.TarError) as error:
        raise UserError(f"{tar}: cannot be read ({error}); the shard is damaged, collect it again") from error
