"""Checkpoints that are whole or not there: a folder of safetensors and state.json, named by the images seen.

A folder is written under a temporary name, flushed to disk and renamed. state.json holds the hash of every file and of
itself, so one that was damaged later is noticed, and the one before is used.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pipeline.artifacts import check_room, fsync, read_json, sha256_file
from pipeline.errors import UserError
from pipeline.fingerprint import digest
from pipeline.train.network import read_tensors

STATE = "state.json"
Tensors = dict[str, Tensor]


@dataclass
class State:
    """Where a stage stands, beside its weights."""

    images: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # by activity, over all runs so far
    rows: list[list[Any]] = field(default_factory=list)  # of `Losses`, not yet in a line of metrics.jsonl
    guard: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # the history of gradient norms
    skipped: int = 0  # steps that were not taken
    skipped_in_row: int = 0
    best: dict[str, float] | None = None  # `images` and `validation_loss` of the best checkpoint so far


class Checkpoints:
    """The checkpoints of one run, in work/{fingerprint}: the last `keep`, which the final one is among, the best, and the
    last good one, which is that of a step that was not skipped: where many are, the weights may be to blame."""

    def __init__(self, folder: Path, fingerprint: str, keep: int) -> None:
        self.folder, self._fingerprint, self._keep = folder, fingerprint, keep

    def path(self, images: int) -> Path:
        return self.folder / f"{images:012d}"

    def prepare(self) -> None:
        """Make the folder and remove what a killed process left half-written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)

    def newest(self) -> int:
        """Images of the newest checkpoint that is as it was written, 0 if there is none. A damaged one is named on
        stderr and set aside."""
        for folder in reversed(self._all()):
            fault = self._fault(folder)
            if not fault:
                return int(folder.name)
            print(f"checkpoint {folder}: {fault}; set aside, the one before is used", file=sys.stderr, flush=True)
            os.replace(folder, _unused(folder.with_name(f"{folder.name}.damaged")))
        return 0

    def state(self, images: int) -> State:
        """Where the checkpoint at `images` stands; at 0 that is the beginning."""
        if images == 0:
            return State()
        value = read_json(self.path(images) / STATE)
        return State(**{name: value[name] for name in State.__dataclass_fields__ if name in value})

    def images(self) -> list[int]:
        """Images of all that are there, damaged or not, ascending."""
        return [int(path.name) for path in self._all()]

    def last_good(self) -> Path | None:
        """The newest that is as it was written, of a step that was not skipped."""
        whole = (path for path in reversed(self._all()) if not self._fault(path))
        return next((path for path in whole if self.state(int(path.name)).skipped_in_row == 0), None)

    def load(self, images: int, name: str) -> Tensors:
        return read_tensors(self.path(images) / f"{name}.safetensors")

    def save(self, state: State, files: Iterable[tuple[str, Tensors]], needed: int) -> None:
        """Write a checkpoint, the files one after another, `needed` bytes in all; then drop what is not to be kept.

        Raises: UserError naming the folder and the bytes if the disk is full; what was there before stays as it was.
        """
        final = self.path(state.images)
        check_room(final, needed)
        with _whole_folder(final, needed) as folder:
            for name, tensors in files:
                save_tensors(tensors, folder / f"{name}.safetensors")
            hashes = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
            _write_state(folder / STATE, {"fingerprint": self._fingerprint, **asdict(state), "files": hashes})
        good = self.last_good() if state.skipped_in_row else final
        best = self.path(int(state.best["images"])) if state.best else None
        for old in set(self._all()[: -self._keep]) - {good, best}:
            _remove(old)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[0-9]*") if path.name.isdigit())

    def _fault(self, folder: Path) -> str:
        """What is wrong with a checkpoint; empty if nothing is."""
        try:
            value: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
            changed = [STATE] if value.pop("sha256") != digest(value, 64) else []
            changed += [name for name, sha256 in value["files"].items() if sha256_file(folder / name) != sha256]
            belongs = value["fingerprint"] == self._fingerprint and value["images"] == int(folder.name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return f"not readable ({error})"
        return f"{changed[0]} is not what was written" if changed else "" if belongs else "belongs to another run"


def remove_leftovers(folder: Path) -> None:
    """What `atomic` and `_whole_folder` were writing, here and below, when their process was killed."""
    for leftover in sorted(folder.rglob(".*.part"), reverse=True):  # what lies inside others first
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _write_state(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps({**value, "sha256": digest(value, 64)}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    fsync(path)


def save_tensors(tensors: Tensors, path: Path) -> None:
    """Write and flush to disk, readable by whom the folder is (safetensors itself makes private files).

    Raises: OSError if the disk is full.
    """
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(path.parent.stat().st_mode & 0o666)
    fsync(path)


def _remove(folder: Path) -> None:
    """Renamed first: what is left of it if the process is killed meanwhile is no checkpoint any more."""
    temporary = _temporary(folder)
    os.replace(folder, temporary)
    shutil.rmtree(temporary)


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}.part")


@contextmanager
def _whole_folder(final: Path, needed: int) -> Iterator[Path]:
    """A temporary folder, renamed to `final` when the block ends well and removed when it does not."""
    temporary = _temporary(final)
    try:
        temporary.mkdir()
        yield temporary
        fsync(temporary)
        os.replace(temporary, final)
        fsync(final.parent)
    except OSError as error:
        fault = f"{needed:,} bytes cannot be written ({error.strerror or error})"
        raise UserError(f"{final}: {fault}; make room or fix permissions and run again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unused(path: Path) -> Path:
    """`path`, or with a number behind it if that is taken."""
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name.split('~')[0]}~{number}")
    return path
