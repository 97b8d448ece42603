"""What the captioner has written of a shard so far, in a file that a kill at any moment leaves readable."""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from pipeline.errors import UserError


class Written(NamedTuple):
    """A caption of the captioner. `prompt` is its place in captioning.prompts, None for a model that takes none; `cut`:
    it was too long."""

    prompt: int | None
    text: str
    cut: bool


Batch = dict[str, list[Written]]  # by key of the image


class Journal:
    """JSON lines, appended: the first says by what the captions are made, each other one holds those of a batch of images.

    A batch is there or not, so that a shard that goes on has the same batches as one that was never interrupted: in
    bfloat16 a caption may depend on the others of its batch. A cut tail is cut away; the journal of another model,
    configuration or shard is started anew.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.written: Batch = {}
        self._head = json.dumps({"fingerprint": fingerprint}).encode() + b"\n"

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        except OSError as error:
            raise self._fault(error) from error
        try:
            self._lock()
            whole = self._read()
            self._file.truncate(whole)
            if not whole:
                self._append(self._head)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, batch: Batch) -> None:
        """Raises: UserError if it cannot be written."""
        self._append(json.dumps(batch, ensure_ascii=False).encode() + b"\n")
        self.written |= batch

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{self.path}: another process writes these captions; wait for its end, or end it") from error

    def _append(self, line: bytes) -> None:
        try:
            self._file.seek(0, os.SEEK_END)
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._fault(error) from error

    def _read(self) -> int:
        """Take over the batches of an earlier run. Returns the bytes that are whole lines, 0 if none is of this run."""
        if self._file.read(len(self._head)) != self._head:
            return 0
        whole = len(self._head)
        for line in self._file.read().splitlines(keepends=True):
            try:
                batch = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:  # what a machine that lost its power leaves
                batch = None
            if batch is None:
                break
            self.written |= {key: [Written(*caption) for caption in captions] for key, captions in batch.items()}
            whole += len(line)
        return whole

    def _fault(self, error: OSError) -> UserError:
        what = error.strerror or error
        return UserError(f"{self.path}: cannot be written ({what}); make room or fix permissions and run again")
