"""The step `table`: the table of a URL list, or the captions of archives, in one form and order that every shard can read
its part of.

A URL list keeps its order, and of it `fraction` keeps the rows that a hash of their ids chooses. Rows of archives are
sorted by id, so that the few a shard needs stand in few row groups.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import TABLE, atomic, write_sidecar
from pipeline.config.sources import ArchivesSource, Columns, Source, UrlListSource
from pipeline.config.steps import Settings, TableSlice
from pipeline.download.files import Files
from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.runtime import progress
from pipeline.sources import columns as cells
from pipeline.sources.columns import Needed
from pipeline.sources.fraction import takes
from pipeline.sources.members import stem
from pipeline.sources.rows import Row, read
from pipeline.sources.shard import clean_scores
from pipeline.sources.sorting import sort_by_id
from pipeline.sources.text import clean_field, plain_text

GROUP_ROWS = 1000  # of a row group, which is what is read to look one id up
MAX_ID = 500  # letters
TEXT_COLUMNS = Columns(id="id", captions=["caption"])  # of a tar of .txt files


@dataclass
class Tally:
    """Rows that were read, those that `fraction` chose, and among these the bad ones by reason."""

    read: int = 0
    chosen: int = 0
    bad: Counter[str] = field(default_factory=Counter)


def run(slice_: TableSlice, settings: Settings, downloads: Path, out: Path) -> None:
    """Make the table of a source: OUT is its sidecar, the rows stand beside it as .parquet in the form of artifacts.TABLE.

    Raises: UserError if a file of the table cannot be had or read, or none of its rows names an image.
    """
    source, where = slice_.source, f"sources.{slice_.name}.table"
    if isinstance(source, ArchivesSource) and source.columns.id is None and not _is_texts(source):
        raise UserError(f"sources.{slice_.name}.columns.id: name the column with the names of the images")
    files = Files(downloads, settings.runtime.downloads)
    references = files.expand(where, source.table)
    paths = [_fetch(files, where, reference) for reference in references]
    rows, tally = out.with_suffix(".parquet"), Tally()
    with progress(f"table {slice_.name}", None, "rows") as bar, atomic(rows) as temporary:
        batches = _batches(_entries(source, where, paths, tally, bar.update))
        count = _write(temporary, _in_order(source, batches, downloads))
        _check_rows(where, tally)
    commits = {reference: files.commit(reference) for reference in references}
    write_sidecar(out, "table", {"table": (rows, count)}, _info(source, slice_.name, commits, tally, count))
    for path in paths:
        files.done_with(path)


def _is_texts(source: ArchivesSource) -> bool:
    """Whether it may be a tar of .txt files, which have their ids in their names."""
    return source.table.lower().endswith((".tar", ".tar.gz", ".tgz", ".zip"))


def _fetch(files: Files, where: str, reference: str) -> Path:
    try:
        return files.fetch(reference)
    except Unusable as failure:
        raise UserError(f"{where}: {reference} was not received ({failure.reason}: {failure.detail})") from failure


def _entries(
    source: UrlListSource | ArchivesSource, where: str, paths: list[Path], tally: Tally, seen: Any
) -> Iterator[dict[str, Any]]:
    """The rows that are chosen, as artifacts.TABLE has them. Archives cannot use rows that name no image."""
    is_list = isinstance(source, UrlListSource)
    needed = Needed.of(source.columns, "id", *(["url"] if is_list else []))
    for row in _rows(where, paths, needed, source.header):
        tally.read += 1
        seen()
        entry = _entry(row, source.columns, is_list)
        if is_list and not takes(entry["id"] or row.place, source.fraction):
            continue
        tally.chosen += 1
        tally.bad.update([entry["fault"]] if entry["fault"] else [])
        if is_list or not entry["fault"]:
            entry["fault"] = entry["fault"] and f"{row.place}: {entry['fault']}"
            yield entry


def _rows(where: str, paths: list[Path], needed: Needed, header: list[str] | None) -> Iterator[Row]:
    for path in paths:
        try:
            yield from read(path, needed, header)
        except Unusable as failure:
            raise UserError(f"{where}: {path}: {failure.detail}; delete it if it was fetched, and run again") from failure


def _entry(row: Row, columns: Columns, is_list: bool) -> dict[str, Any]:
    entry = dict.fromkeys(TABLE.names) | {"captions": [], "scores": [], "fault": row.fault}
    if row.fault:
        return entry
    values, columns = row.values, TEXT_COLUMNS if row.is_text else columns
    entry["id"], entry["url"] = _id(cells.value(values, columns.id)), clean_field(cells.value(values, columns.url))
    if not is_list:
        entry["id"] = stem(entry["id"]) if entry["id"] else None
    elif columns.id is None and entry["url"]:
        entry["id"] = hashlib.sha256(entry["url"].encode()).hexdigest()[:20]
    entry["fault"] = _fault(entry, is_list)
    entry["license"] = clean_field(cells.value(values, columns.license))
    texts = [plain_text(caption) for caption in cells.captions(values, columns)]
    entry["captions"] = [text for text, _ in texts if text]
    scores, score_notes = clean_scores(cells.scores(values, columns))
    entry["scores"] = list(scores.items())
    entry["sha256"], hash_notes = _sha256(cells.value(values, columns.sha256))
    notes = dict.fromkeys((*(note for _, note in texts if note), *score_notes, *hash_notes))
    entry["note"] = "; ".join(notes) or None
    return entry


def _id(value: Any) -> str | None:
    """Text or a whole number. A column of numbers with gaps comes as 1.0, 2.0 …"""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else clean_field(value)


def _fault(entry: dict[str, Any], is_list: bool) -> str | None:
    if is_list and not entry["url"]:
        return "no url"
    if not entry["id"]:
        return "no id"
    return "id too long" if len(entry["id"]) > MAX_ID else None


def _sha256(value: Any) -> tuple[str | None, tuple[str, ...]]:
    found = (clean_field(value) or "").lower()
    if re.fullmatch("[0-9a-f]{64}", found):
        return found, ()
    return None, () if value is None else ("what the table has as sha256 is none, it was not compared",)


def _batches(entries: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    entries = iter(entries)
    while rows := list(islice(entries, GROUP_ROWS)):
        yield pa.Table.from_pylist(rows, TABLE)


def _in_order(source: UrlListSource | ArchivesSource, batches: Iterator[pa.Table], downloads: Path) -> Iterator[pa.Table]:
    """The rows of archives by id, of each id the first; those of URL lists as they come."""
    return batches if isinstance(source, UrlListSource) else sort_by_id(batches, downloads / "sort")


def _write(path: Path, tables: Iterable[pa.Table]) -> int:
    """Returns the number of rows."""
    count = 0
    with pq.ParquetWriter(path, TABLE, compression="zstd", write_statistics=["id"]) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=GROUP_ROWS)
            count += len(table)
    return count


def _check_rows(where: str, tally: Tally) -> None:
    if not tally.chosen:
        raise UserError(f"{where}: " + (f"`fraction` chooses none of {tally.read} rows" if tally.read else "holds no rows"))
    if tally.chosen == tally.bad.total():
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(tally.bad.items()))
        raise UserError(f"{where}: none of {tally.read} rows names an image ({reasons}); see `columns` and `header`")


def _info(source: Source, name: str, commits: dict[str, str | None], tally: Tally, count: int) -> dict[str, Any]:
    """What adds up: read = chosen + passed over by `fraction`; of archives chosen = rows + bad + duplicates."""
    counts = {"read": tally.read, "chosen": tally.chosen, "bad": dict(sorted(tally.bad.items()))}
    if isinstance(source, ArchivesSource):
        counts["duplicates"] = tally.chosen - tally.bad.total() - count
    return {"source": name, "files": commits, **counts}
