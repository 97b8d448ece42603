"""Checkpoints that are whole or not there: a folder of safetensors and state.json, named by the images seen.

A folder is written under a temporary name, flushed to disk and renamed. state.json holds the hash of every file, so one
that was damaged later is noticed, and the one before is used.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pipeline.artifacts import fsync, read_json, sha256_file, write_json
from pipeline.errors import UserError
from pipeline.train.network import read_tensors

STATE = "state.json"
Tensors = dict[str, Tensor]


@dataclass
class State:
    """Where a stage stands, beside its weights."""

    images: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # by activity, over all runs so far
    rows: list[list[float]] = field(default_factory=list)  # of `Losses`, not yet in a line of metrics.jsonl


class Checkpoints:
    """The checkpoints of one run, in work/{fingerprint}."""

    def __init__(self, folder: Path, fingerprint: str, keep: int) -> None:
        self.folder, self._fingerprint, self._keep = folder, fingerprint, keep

    def path(self, images: int) -> Path:
        return self.folder / f"{images:012d}"

    def prepare(self) -> None:
        """Make the folder and remove what a killed process left half-written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.part"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

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
        return State(value["images"], value["seconds"], value["rows"])

    def last(self) -> str:
        """Path of the newest one, in words for an error."""
        found = self._all()
        return str(found[-1]) if found else "none"

    def load(self, images: int, name: str) -> Tensors:
        return read_tensors(self.path(images) / f"{name}.safetensors")

    def save(self, state: State, files: dict[str, Tensors]) -> None:
        """Write a checkpoint, then drop the oldest beyond the number to keep.

        Raises: UserError if the disk is full.
        """
        final = self.path(state.images)
        if final.exists():
            return  # the state follows from the images: it would be the same again
        with _whole_folder(final) as folder:
            for name, tensors in files.items():
                save_tensors(tensors, folder / f"{name}.safetensors")
            hashes = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
            write_json(folder / STATE, {"fingerprint": self._fingerprint, **asdict(state), "files": hashes})
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[0-9]*") if path.name.isdigit())

    def _fault(self, folder: Path) -> str:
        """What is wrong with a checkpoint; empty if nothing is."""
        try:
            value: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
            changed = [name for name, sha256 in value["files"].items() if sha256_file(folder / name) != sha256]
            belongs = value["fingerprint"] == self._fingerprint and value["images"] == int(folder.name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"not readable ({error})"
        return f"{changed[0]} is not what was written" if changed else "" if belongs else "belongs to another run"


def save_tensors(tensors: Tensors, path: Path) -> None:
    """Write and flush to disk, readable by whom the folder is (safetensors itself makes private files)."""
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(path.parent.stat().st_mode & 0o666)
    fsync(path)


@contextmanager
def _whole_folder(final: Path) -> Iterator[Path]:
    """A temporary folder, renamed to `final` when the block ends well and removed when it does not."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        temporary.mkdir()
        yield temporary
        fsync(temporary)
        os.replace(temporary, final)
        fsync(final.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{final}: checkpoint cannot be written ({error}); make room or fix permissions and run again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unused(path: Path) -> Path:
    """`path`, or with a number behind it if that is taken."""
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name.split('~')[0]}~{number}")
    return path
