"""What surrounds each step of the workflow: a lock, so that nobody else writes the same; a GPU; and a record of the process.

When a driver is killed its steps live on, and the next driver starts the same steps. What may then happen:

- A step waits until no other process holds the lock of what it writes. If the other one dies, it goes on from what that one
  saved. If the other one ends well while it waits, and had the same command and inputs, nothing is left to do.
- Snakemake removes declared outputs before it starts a step, maybe between two that the other one writes. So the other one
  notes in the lock what it wrote, and only if all of it is there is nothing left to do.
- What the other one finished before this step came to wait was removed with them, so the step runs. Training, sampling and
  encoding then find their work in files that are no declared outputs.
- Of processes that train together the first takes the lock. The others wait for their launch to be named in it, since in a
  collective they would wait for as long as that may take, and no longer.
"""

import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline.cli.app import RECORDS
from pipeline.fingerprint import ROOT, canonical_json
from pipeline.gpus import one_gpu
from pipeline.lock import Holder, Lock
from pipeline.runtime import process_record

LOCKS = Path("results/work/locks")
SMALL_BYTES = 10**6
LAUNCH = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_RESTART_COUNT")


@contextmanager
def job(step: str, name: str, out: Path, device: str = "cpu") -> Iterator[None]:
    """Alone at `out`, a file or folder, with a GPU to itself unless `device` is the CPU.

    Raises: SystemExit, with 0, if another process has just done the same.
    """
    with _alone(f"{step}-{name}", out), one_gpu(device), process_record(step, name, RECORDS):
        yield


@contextmanager
def _alone(what: str, out: Path) -> Iterator[None]:
    lock = Lock(_file(what, out))
    if os.environ.get("RANK", "0") != "0":
        _follow(lock)
        yield
        return
    me = Holder(command=command_digest(sys.argv[1:]), launch=_launch())
    written = _watch()
    try:
        if not lock.take():
            _wait(lock, what, me)
            me = replace(me, since=Holder().since)
        lock.write(me)
        yield
        lock.write(replace(me, ended=True, wrote=_results(out, written)))
    finally:
        lock.release()


def _watch() -> dict[str, None]:
    """The files that this process puts in their place from now on, in their order. Every artifact is renamed into it."""
    written: dict[str, None] = {}

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename":
            written[os.fsdecode(arguments[1])] = None

    # A list kept by `artifacts.atomic` would be code of every step, whose change makes them all run again.
    sys.addaudithook(note)
    return written


def _file(what: str, out: Path) -> Path:
    """Of results elsewhere, which have no names of their own, by their path."""
    inside = Path("results").resolve() in out.resolve().parents
    place = "" if inside else "-" + hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:12]
    return LOCKS / f"{what.replace('/', '-')}{place}.lock"


def _wait(lock: Lock, what: str, me: Holder) -> None:
    """Until the lock is had. Raises: SystemExit, with 0, if nothing is left to do."""
    before = lock.read()
    print(f"{what}: {before or 'another process'} is at it, maybe of a run that was killed; waiting for its end", file=sys.stderr)
    sys.stderr.flush()
    lock.take(wait=True)
    after = lock.read()
    if after is None or after == before or not after.ended or after.command != me.command:
        return
    if after.wrote and all(map(os.path.exists, after.wrote)):
        lock.write(replace(after, spared=me.launch))
        print(f"{what}: process {after.pid} has ended well; nothing is left to do", file=sys.stderr, flush=True)
        raise SystemExit(0)


def _follow(lock: Lock) -> None:
    """Wait for the first process of the same launch. Raises: SystemExit, with 0, if that has nothing left to do."""
    launch = _launch()
    while (holder := lock.read()) is None or launch not in (holder.launch, holder.spared):
        time.sleep(0.2)
    if holder.spared == launch:
        raise SystemExit(0)


def _launch() -> str:
    return " ".join(os.environ.get(name, "") for name in LAUNCH)


def _results(out: Path, written: Iterable[str]) -> tuple[str, ...]:
    folder = out if out.is_dir() else out.parent
    return tuple(file for file in written if Path(file).is_relative_to(folder))


def command_digest(arguments: Sequence[str]) -> str:
    """Of a command, the small files that it names, summaries in folders that it names, and the state of this program."""
    hashed = hashlib.sha256(canonical_json(list(arguments)).encode())
    for before, word in zip(("", *arguments), arguments, strict=False):
        path = word.partition("=")[2] or word
        for file in (path, os.path.join(path, "summary.json")):
            if before != "--out" and os.path.isfile(file):
                hashed.update(_content(file))
    for source in sorted((ROOT / "pipeline").rglob("*.py")):
        hashed.update(f"{source} {source.stat().st_mtime_ns}\n".encode())
    return hashed.hexdigest()[:16]


def _content(file: str) -> bytes:
    """Or, of a large file, what changes with it."""
    state = os.stat(file)
    if state.st_size > SMALL_BYTES:
        return f"{state.st_size} {state.st_mtime_ns}".encode()
    with open(file, "rb") as content:
        return content.read()
