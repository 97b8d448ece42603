"""One process at a time at a file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def alone_at(path: Path) -> Iterator[None]:
    """Wait until no other process is at `path`. The lock of a process that was killed is gone with it."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"{path}: another process fetches it; waiting for that", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
