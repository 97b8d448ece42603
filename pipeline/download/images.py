"""The images of a list of URLs: many hosts at a time, every failure with its class, and a journal to resume from."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.config.schema import Downloads
from pipeline.ledger import Unusable


class Wanted(NamedTuple):
    """An image to fetch."""

    url: str
    sha256: str | None = None


class Fetched(NamedTuple):
    """What became of it. `notes` say what a person should know, such as where a redirect led."""

    image: bytes | Unusable
    notes: tuple[str, ...] = ()


def fetch_images(
    wanted: Sequence[Wanted], journal: Path, downloads: Downloads, opt_out: Iterable[str] = (), title: str = "images"
) -> Iterator[Fetched]:
    """An outcome for each of `wanted`, in their order, however they come in.

    All are fetched first, with a progress bar, and a second pass tries those again that failed for now. What has come in
    is in the file `journal` at once: run again after a kill, nothing in it is asked for twice. The caller deletes it.
    """
    raise NotImplementedError
