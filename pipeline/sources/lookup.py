"""Reading the table that the step `table` made: a stretch of its rows, or the row of an id."""

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GROUPS_KEPT = 8  # row groups in memory: many archives hold images in the order of their ids


class TableReader:
    """Rows are dicts in the form of artifacts.TABLE. No more than a few row groups are in memory."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        self._groups = [self._file.metadata.row_group(group) for group in range(self._file.metadata.num_row_groups)]
        self._starts: list[str] | None = None
        self._group = lru_cache(GROUPS_KEPT)(self._read)

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def between(self, first: int, end: int) -> Iterator[dict[str, Any]]:
        """Rows first to end - 1, in their order."""
        start = 0
        for number, group in enumerate(self._groups):
            skipped, stop = max(0, first - start), min(end - start, group.num_rows)
            if skipped < stop:
                yield from map(_plain, self._file.read_row_group(number).slice(skipped, stop - skipped).to_pylist())
            start += group.num_rows

    def find(self, name: str) -> dict[str, Any] | None:
        """The row of an id, of a table that is sorted by id. One row group is read, which its statistics point to."""
        if self._starts is None:
            self._starts = [group.column(0).statistics.min for group in self._groups]
        number = bisect_right(self._starts, name) - 1
        if number < 0:
            return None
        places, rows = self._group(number)
        return _plain(rows.slice(places[name], 1).to_pylist()[0]) if name in places else None

    def _read(self, number: int) -> tuple[dict[str, int], pa.Table]:
        rows = self._file.read_row_group(number)
        return {name: place for place, name in enumerate(rows["id"].to_pylist())}, rows


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"scores": dict(row["scores"])}
