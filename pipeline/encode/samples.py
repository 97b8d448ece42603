"""Reading a shard: its images with webdataset, its captions from the table beside them."""

import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.artifacts import Sidecar
from pipeline.errors import UserError


def captions_of(captions: Sidecar, images: Sidecar) -> tuple[list[str], list[str]]:
    """Keys and captions, "" where there is none: those of an image next to each other, in the shard's order.

    Raises: UserError if the table is of another number of images than the shard has.
    """
    file = captions.file("captions")
    table = pq.read_table(file, columns=["key", "caption"])
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
        key = json.loads(sample["json"])["key"]
        if row >= len(keys) or key != keys[row]:
            raise UserError(f"{tar}: row {row} is '{key}', but the captions are of other images; run caption again")
        yield key, sample["jpg"] if "jpg" in sample else sample["png"]
    if row + 1 != len(keys):
        raise UserError(f"{tar}: {row + 1} images, but {len(keys)} captions; run collect and caption again")


def _samples(tar: Path) -> Iterator[dict[str, bytes]]:
    import webdataset as wds  # imports torch

    # As a URL, a path may hold any character; a list is not searched for braces.
    shard = wds.WebDataset([tar.resolve().as_uri()], shardshuffle=False, empty_check=False)
    try:
        yield from shard
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{tar}: cannot be read ({error}); the shard is damaged, collect it again") from error
