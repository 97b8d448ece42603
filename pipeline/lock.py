"""Locks of the kernel (flock): one process at a time, and none that outlives its holder.

A lock goes with the process that took it, however that ends, so none is ever removed by hand. The file stays, and says who
holds it or was the last to. Between hosts it takes a file system that passes flock on: NFS does since Linux 2.6.12, Lustre
where it is mounted with `-o flock`.
"""

import atexit
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import UserError

DRIVER = Path("results/work/locks/driver.lock")  # of whoever runs a workflow in this folder
POLL_SECONDS = 0.5  # some wait for days
READS, TORN_SECONDS = 5, 0.01  # of a note of which only a half is there


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, or was the last to. The default is this process, from now on."""

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    since: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(" ", "seconds"))
    command: str = ""  # digest of what it does: with an equal one the result is the same
    launch: str = ""  # what processes that work together have in common, and no others
    spared: str = ""  # launch of those that waited and found nothing left to do
    ended: bool = False  # it came to its end, and that well
    wrote: tuple[str, ...] = ()  # its results

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class Lock:
    """The lock that the file `path` stands for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Without flock it would take the existence of a file for a lock, which outlives its holder.
        self._lock = FileLock(path, fallback_to_soft=False, on_acquired=self._opened)

    def take(self, wait: bool = False) -> bool:
        """Whether it could be had, which with `wait` is so in the end. Raises: UserError if there are no locks here."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=wait, poll_interval=POLL_SECONDS)
        except Timeout:
            return False
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be locked ({error.strerror or error}); make it writable, on a file system with flock "
                "(Lustre: mount it with -o flock)"
            ) from error
        return True

    def write(self, holder: Holder) -> None:
        """Say who holds it, which must be this process."""
        line = json.dumps(asdict(holder)).encode() + b"\n"
        # In one call, and never shorter than before: who reads meanwhile mostly finds what was or what is.
        os.pwrite(self._file, line.ljust(os.fstat(self._file).st_size), 0)

    def read(self) -> Holder | None:
        """Who holds it or was the last to; None if nobody did, or has not said so yet."""
        for _ in range(READS):
            try:
                if not (note := self.path.read_bytes()):
                    return None
                value = json.loads(note)
                return Holder(**value | {"wrote": tuple(value["wrote"])})
            except (OSError, TypeError, KeyError):
                return None
            except ValueError:  # read while it was written: the kernel keeps neither from the other
                time.sleep(TORN_SECONDS)
        return None

    def release(self) -> None:
        self._lock.release()

    def _opened(self, descriptor: int) -> None:
        self._file = descriptor


@contextmanager
def alone_at(path: Path) -> Iterator[None]:
    """Wait until no other process is at `path`, with a line that says who is."""
    lock = Lock(path.with_name(f".{path.name}.lock"))
    if not lock.take():
        print(f"{path}: {lock.read() or 'another process'} fetches it; waiting for that", file=sys.stderr, flush=True)
        lock.take(wait=True)
    try:
        lock.write(Holder())
        yield
    finally:
        lock.release()


def be_alone(path: Path, before: Holder | None) -> None:
    """Hold the lock until this process ends. `before` is who had it when this process began to look at the results.

    Raises: UserError naming who holds it, or who did meanwhile.
    """
    lock = Lock(path)
    if not lock.take():
        raise UserError(f"another run is going on here: {lock.read() or 'just started'}; wait for its end, or stop it")
    if lock.read() != before:
        lock.release()
        raise UserError(f"another run has ended here while this one was planned ({lock.read()}); give the same command again")
    me = Holder()
    lock.write(me)
    atexit.register(lambda: lock.write(replace(me, ended=True)))
