"""Safetensors files that are whole or not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pipeline.artifacts import atomic


@contextmanager
def atomic_tensors(path: Path) -> Iterator[Path]:
    """As `atomic`, for what safetensors writes, which has an exception of its own for a full disk.

    Raises: UserError naming the file.
    """
    with atomic(path) as temporary:
        try:
            yield temporary
        except SafetensorError as error:
            raise OSError(str(error)) from error
