"""What passes between the kinds of source and the shard writer: raw samples, and why one cannot be used."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pipeline.config.running import Downloads
from pipeline.download.files import Files
from pipeline.ledger import Unusable

MAX_IMAGE_BYTES = 256 * 2**20  # a file this large is no photo; it is not read
MAX_TEXT_BYTES = 2**20
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tif", "tiff", "ppm"})


@dataclass(frozen=True)
class Raw:
    """One sample as its source gives it, nothing checked yet. Text that was no valid UTF-8 stays bytes, or a string
    with surrogates, until it is cleaned."""

    name: str  # the key is made of it
    origin: str  # file or archive member
    image: bytes | Unusable
    captions: tuple[Any, ...] = ()  # in the source's order; the first usable one is the caption
    several: bool = False  # whether all captions are kept, as COCO's five an image
    url: Any = None
    license: Any = None
    scores: Any = None  # {name: number}, as nsfw, aesthetic or watermark models gave them
    attributes: Any = None  # JSON-able
    notes: tuple[str, ...] = ()  # what a person should know about a sample that is used


class Inputs(NamedTuple):
    """What a kind of source reads from beside its configuration."""

    files: Files  # of this machine, or fetched
    table: Path | None = None  # the source's table, for kinds that have one
    least_yield: float = 0.0  # share of the archives that must be received
    downloads: Downloads = Downloads()  # how images are fetched


def _nothing() -> None:
    pass


class Listing(NamedTuple):
    """One shard of a source. `samples` yields (done, sample), `done` counting up to `total` in `unit`; the sample is None
    where the key `fraction` passes one over. `after` is called once the shard is written: what was fetched for it is
    needed no more."""

    total: int
    unit: str
    samples: Iterator[tuple[float, Raw | None]]
    after: Callable[[], None] = _nothing
    files_passed: int = 0  # of the whole source, by the key `fraction`


def checked(image: bytes | Unusable, sha256: Any) -> bytes | Unusable:
    """An image whose sha256 a table gives."""
    if sha256 is None or isinstance(image, Unusable):
        return image
    found, given = hashlib.sha256(image).hexdigest(), str(sha256).strip().lower()
    return image if found == given else Unusable("wrong_hash", f"sha256 {found}, the table has {given[:64]!a}")


def read_file(path: Path, limit: int = MAX_IMAGE_BYTES) -> bytes | Unusable:
    """Content of a plain file of at most `limit` bytes, or why it could not be read."""
    try:
        if not path.is_file():  # a pipe or a device would block for ever
            return Unusable("missing_file", "not there, or no plain file")
        if (size := path.stat().st_size) > limit:
            return Unusable("too_large", f"{size} bytes, the limit is {limit}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return Unusable("unreadable_file", str(getattr(error, "strerror", None) or error))


def read_named(folder: Path, name: str, limit: int = MAX_IMAGE_BYTES) -> bytes | Unusable:
    """Content of a file that a table names, which must lie in the folder."""
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        return Unusable("unsafe_member", "absolute path or path that leaves its folder")
    return read_file(folder / name, limit)
