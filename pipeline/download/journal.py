"""What has become of a list of downloads so far, in one file that a kill at any moment leaves readable."""

import fcntl
import json
import os
import struct
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from pipeline.download.retry import PASSING
from pipeline.download.room import writing
from pipeline.errors import UserError
from pipeline.ledger import Unusable

MAGIC = b"shoestring journal 1\n"
RECORD = struct.Struct("<IIQ")  # crc32 of all that follows it, bytes of the note, bytes of the image
LENGTHS = struct.Struct("<IQ")
CHUNK = 2**20
FLUSH_BYTES = 64 * 2**20  # so much may be lost when the machine, and not only the program, goes down
NOWHERE = -1


class Fetched(NamedTuple):
    """What became of it. `notes` say what a person should know, such as where a redirect led."""

    image: bytes | Unusable
    notes: tuple[str, ...] = ()


class Journal:
    """Outcomes by index, appended one by one, the last one of an index counts. A tail that was cut off is cut away.

    `digest` is of the list that the journal belongs to: that of another list is started anew.
    """

    def __init__(self, path: Path, digest: bytes, count: int) -> None:
        self.path, self._head = path, MAGIC + digest
        self._offsets, self._settled = array("q", [NOWHERE]) * count, bytearray(count)
        self._unflushed = 0

    def __enter__(self) -> Self:
        with writing(self.path.parent, 0):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        try:
            self._lock()
            self._end = self._read_all()
            with writing(self.path.parent, 0):
                self._file.truncate(self._end)
            if not self._end:
                self._append(self._head)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def is_settled(self, index: int) -> bool:
        """Whether the outcome is known and none that may pass."""
        return bool(self._settled[index])

    def __contains__(self, index: int) -> bool:
        return self._offsets[index] != NOWHERE

    def add(self, index: int, fetched: Fetched) -> None:
        """Raises: UserError naming the folder and the bytes if the disk is full."""
        bad = fetched.image if isinstance(fetched.image, Unusable) else None
        image = b"" if bad else fetched.image
        note = json.dumps([index, bad and [bad.reason, bad.detail], fetched.notes]).encode()
        lengths = LENGTHS.pack(len(note), len(image))
        crc = zlib.crc32(image, zlib.crc32(note, zlib.crc32(lengths)))
        offset = self._end
        self._append(RECORD.pack(crc, len(note), len(image)) + note, image)
        self._place(index, offset, bad.reason if bad else None)

    def read(self, index: int) -> Fetched:
        """The outcome of `index`, which must be there."""
        self._file.seek(self._offsets[index])
        _, note_bytes, image_bytes = RECORD.unpack(self._file.read(RECORD.size))
        _, bad, notes = json.loads(_exactly(self._file, note_bytes))
        return Fetched(Unusable(*bad) if bad else _exactly(self._file, image_bytes), tuple(notes))

    def flush(self) -> None:
        """Wait until all of it is on the disk."""
        os.fsync(self._file.fileno())
        self._unflushed = 0

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{self.path}: another process writes it; wait for its end, or end it") from error

    def _append(self, *parts: bytes) -> None:
        needed = sum(map(len, parts))
        with writing(self.path.parent, needed):
            self._file.seek(self._end)
            for part in parts:
                view = memoryview(part)
                while view:
                    view = view[self._file.write(view) :]
            self._unflushed += needed
            if self._unflushed >= FLUSH_BYTES:
                self.flush()
        self._end += needed

    def _place(self, index: int, offset: int, reason: str | None) -> None:
        self._offsets[index], self._settled[index] = offset, reason not in PASSING

    def _read_all(self) -> int:
        """Find the records of an earlier run. Returns where the last whole one ends, 0 if the file is not of this list."""
        size = os.fstat(self._file.fileno()).st_size
        self._file.seek(0)
        if size < len(self._head) or _exactly(self._file, len(self._head)) != self._head:
            return 0
        end = len(self._head)
        for index, reason, after in self._whole_records(end, size):
            self._place(index, end, reason)
            end = after
        return end

    def _whole_records(self, offset: int, size: int) -> Iterator[tuple[int, str | None, int]]:
        while offset + RECORD.size <= size:
            crc, note_bytes, image_bytes = RECORD.unpack(_exactly(self._file, RECORD.size))
            offset += RECORD.size + note_bytes + image_bytes
            if offset > size:
                return
            note = _exactly(self._file, note_bytes)
            found = zlib.crc32(note, zlib.crc32(LENGTHS.pack(note_bytes, image_bytes)))
            for start in range(0, image_bytes, CHUNK):
                found = zlib.crc32(_exactly(self._file, min(CHUNK, image_bytes - start)), found)
            if found != crc:
                return
            index, bad, _ = json.loads(note)
            yield index, bad[0] if bad else None, offset


def _exactly(file: BinaryIO, count: int) -> bytes:
    """The next `count` bytes, which are there; an unbuffered read may give fewer."""
    parts = []
    while count and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
