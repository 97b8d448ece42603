"""Sorting more rows than memory holds: sorted runs on disk, then what all of them have between two ids at a time, as in
samplesort (Frazer and McKellar 1970).
"""

import shutil
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError

RUN_BYTES = 128 * 2**20  # of rows that are sorted at a time
BATCH_ROWS = 1024  # of a run, read at a time


def sort_by_id(tables: Iterable[pa.Table], folder: Path, run_bytes: int = RUN_BYTES) -> Iterator[pa.Table]:
    """All rows in the order of the column `id`, in tables of about `run_bytes`; of rows of one id the first that came.

    The runs are kept in `folder`, which is removed at the end. Memory is some 4 · run_bytes however many rows there are.

    Raises: UserError if the folder cannot be written.
    """
    with _scratch(folder):
        runs = [_Run.write(folder / f"{number:06d}.arrow", group) for number, group in enumerate(_groups(tables, run_bytes))]
        if not runs:
            return
        starts = sorted(start for run in runs for start in run.starts)
        for first, end in pairwise(_bounds(starts, -(-sum(run.bytes for run in runs) // run_bytes))):
            yield _sorted(pa.concat_tables([run.between(first, end) for run in runs]))


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """An empty folder; what a run that was killed left there goes."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); make room or fix permissions") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _groups(tables: Iterable[pa.Table], run_bytes: int) -> Iterator[pa.Table]:
    pending, size = [], 0
    for table in tables:
        pending.append(table)
        size += table.nbytes
        if size >= run_bytes:
            yield pa.concat_tables(pending)
            pending, size = [], 0
    if pending:
        yield pa.concat_tables(pending)


def _sorted(table: pa.Table) -> pa.Table:
    """By id, of equal ones the first alone: Arrow's sort is stable."""
    table = table.combine_chunks()
    order = pc.sort_indices(table["id"])
    ids = table["id"].take(order).combine_chunks()
    is_first = np.ones(len(ids), dtype=bool)
    is_first[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    return table.take(order.filter(pa.array(is_first)))


class _Run(NamedTuple):
    """A sorted table on disk, in batches."""

    path: Path
    bytes: int
    starts: list[str]  # first id of each batch

    @classmethod
    def write(cls, path: Path, table: pa.Table) -> Self:
        ordered = _sorted(table)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, ordered.schema) as writer:
            writer.write_table(ordered, max_chunksize=BATCH_ROWS)
        return cls(path, ordered.nbytes, ordered["id"].take(np.arange(0, len(ordered), BATCH_ROWS)).to_pylist())

    def between(self, first: str | None, end: str | None) -> pa.Table:
        """Rows with first <= id < end. No other batch is read."""
        start = 0 if first is None else max(0, bisect_right(self.starts, first) - 1)
        stop = len(self.starts) if end is None else bisect_left(self.starts, end)
        with pa.OSFile(str(self.path)) as file, pa.ipc.open_file(file) as run:
            rows = pa.Table.from_batches([run.get_batch(place) for place in range(start, stop)], run.schema)
        after = pa.scalar(True) if first is None else pc.greater_equal(rows["id"], first)
        before = pa.scalar(True) if end is None else pc.less(rows["id"], end)
        return rows if first is end is None else rows.filter(pc.and_(after, before))


def _bounds(starts: list[str], parts: int) -> list[str | None]:
    """Ids that part the rows evenly, with None at both ends."""
    inner = (starts[len(starts) * part // parts] for part in range(1, parts))
    return [None, *dict.fromkeys(inner), None]
