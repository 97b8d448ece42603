"""The columns in which samples are judged, numbers all: some 60 bytes an image, whatever its names are."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa


class Samples(NamedTuple):
    """A line an image. Reasons and licences are numbers of `Names`; a sample with reason 0 can be trained on."""

    shard: np.ndarray  # the first six as in the index
    row: np.ndarray
    text: np.ndarray
    texts: np.ndarray
    given: np.ndarray
    bucket: np.ndarray  # 0 where all latents have one shape
    sha256_high: np.ndarray  # 128 bits of it: exact for any number of images, a quarter of the memory
    sha256_low: np.ndarray
    phash: np.ndarray
    licence: np.ndarray
    side: np.ndarray  # the shorter one, as received, in pixels
    reason: np.ndarray
    unfit: np.ndarray  # a reason that holds at the stage's resolution alone; it counts once copies are left out

    @classmethod
    def empty(cls, rows: int) -> Self:
        types = [*[np.int32] * 3, *[np.int16] * 3, *[np.uint64] * 3, *[np.int32] * 2, *[np.int16] * 2]
        return cls(*(np.zeros(rows, dtype) for dtype in types))

    @classmethod
    def joined(cls, parts: Iterable[Self], rows: int) -> Self:
        """The parts, `rows` in all, one after another; each is let go of once it is copied."""
        whole, start = cls.empty(rows), 0
        for part in parts:
            end = start + len(part.row)
            for column, values in zip(whole, part, strict=True):
                column[start:end] = values
            start = end
        assert start == rows
        return whole

    @property
    def usable(self) -> np.ndarray:
        """[N] bool: no reason yet."""
        return self.reason == 0

    def leave_out(self, where: np.ndarray, reason: int | np.ndarray) -> None:
        """Give a reason, or one for each of all [N], to those `where` [N] bool that have none: the first one holds."""
        np.copyto(self.reason, reason, where=where & self.usable, casting="same_kind")


class Names:
    """Strings as small numbers, in the order they turn up; None is 0."""

    def __init__(self) -> None:
        self._numbers: dict[str | None, int] = {None: 0}

    def number(self, name: str | None) -> int:
        return self._numbers.setdefault(name, len(self._numbers))

    def numbers(self, column: pa.ChunkedArray) -> np.ndarray:
        """[N] int32."""
        coded = column.combine_chunks().dictionary_encode()
        known = [self.number(name) for name in [*coded.dictionary.to_pylist(), None]]
        return np.array(known, np.int32)[coded.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)]

    def counted(self, numbers: np.ndarray) -> dict[str | None, int]:
        """How often each name is among the numbers, the most frequent first."""
        counts = np.bincount(numbers, minlength=len(self._numbers)).tolist()
        found = [(name, counts[number]) for name, number in self._numbers.items() if counts[number]]
        return dict(sorted(found, key=lambda item: (-item[1], item[0] or "")))

    def __iter__(self) -> Iterator[str | None]:
        return iter(self._numbers)
