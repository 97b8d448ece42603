"""A disk that is full, said in one line when it happens."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError


@contextmanager
def writing(folder: Path, needed: int) -> Iterator[None]:
    """Turns a fault of the disk into a UserError that names the folder and the `needed` bytes.

    Faults of the network are OSErrors too, and some have no number or are ConnectionErrors: those pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError | TimeoutError):
            raise
        what = f"{needed:,} bytes cannot" if needed else "cannot"
        fault = f"{folder}: {what} be written ({os.strerror(error.errno)})"
        raise UserError(f"{fault}; make room or fix permissions and run again") from error
