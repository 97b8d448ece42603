"""Rows of a table in whatever form it is published: Parquet, CSV, TSV or JSON lines, plain or .gz, also inside a tar or a
zip; or a tar or zip of a .txt an image.

All is read as a stream. Text that is not UTF-8 is kept as surrogates or bytes, so that one bad caption costs no other
row; a row that is no row at all is one with a fault. In a TSV a tab always parts two cells and quotes are text, as in the
tables of CC12M; a CSV quotes as RFC 4180 has it.
"""

import csv
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources.columns import Needed
from pipeline.sources.members import MB, Member, gunzip, members, stem
from pipeline.sources.sample import MAX_TEXT_BYTES

MAX_LINE_BYTES = 4 * MB
PARQUET_ROWS = 1024  # of a batch: at most so many cells of MAX_TEXT_BYTES are in memory
BUFFERED = {"buffer_size": MB, "pre_buffer": False}  # else pyarrow has a whole row group in memory: 955 MB where it is 175
DECODED_BYTES = 64 * MB  # of a column as Python has them, at a time
FIRST_ROWS = 100  # of JSON lines, which name the columns
ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip")
FORMATS = "parquet, csv, tsv, jsonl or ndjson, plain, .gz, or in a tar or zip; or a tar or zip of .txt files"


class Row(NamedTuple):
    """One row: where it stands, its columns, or what is wrong with it."""

    place: str
    values: dict[str, Any]
    fault: str | None = None
    is_text: bool = False  # a .txt of an image: its columns are `id` and `caption`, whatever the config names


Numbered = Iterator[tuple[int, dict[str, Any], str | None]]  # line or row number, columns, fault


def read(path: Path, needed: Needed, header: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows in their order. Columns that are not needed may be left out.

    Raises: UserError if the file or its columns cannot be used at all; Unusable where an archive or a .gz breaks off.
    """
    try:
        if not path.name.lower().endswith(ARCHIVES):
            with path.open("rb") as file:
                yield from _table(path.name, file, path.stat().st_size, needed, header)
            return
        found = False
        for member in members(path):
            for row in _member(path.name, member, needed, header):
                found = True
                yield row
        if not found:
            raise UserError(f"{path}: holds no rows; a table is {FORMATS}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _member(archive: str, member: Member, needed: Needed, header: Sequence[str] | None) -> Iterator[Row]:
    place = f"{archive}:{member.name}"
    if isinstance(member.file, Unusable):
        yield Row(place, {}, "member of an archive that is no plain file")
    elif member.name.lower().endswith(".txt"):
        text = member.read(MAX_TEXT_BYTES)
        if isinstance(text, Unusable):
            yield Row(place, {}, "text that is too long or cannot be read", is_text=True)
        else:
            yield Row(place, {"id": stem(member.name), "caption": text}, is_text=True)
    elif _format(member.name):
        yield from _table(place, member.file, member.size, needed, header)


def _format(name: str) -> str | None:
    suffix = name.lower().removesuffix(".gz").rpartition(".")[2]
    return suffix if suffix in _READERS else None


def _table(name: str, file: IO[bytes], size: int, needed: Needed, header: Sequence[str] | None) -> Iterator[Row]:
    kind = _format(name)
    if kind is None:
        raise UserError(f"{name}: not a table that is known here: {FORMATS}")
    plain = gunzip(file, size) if name.lower().endswith(".gz") else file
    for number, values, fault in _READERS[kind](name, plain, needed, header):
        yield Row(f"{name}:{number}", values, fault)


class _TooLong(Exception):
    """A line that was passed over."""


class _Lines:
    """Lines as text, of at most MAX_LINE_BYTES. A longer one raises _TooLong, and the next call goes on behind it."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self._name, self._file, self.number = name, file, 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_LINE_BYTES + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if self.number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"{self._name}: is UTF-16; save it as UTF-8")
        if len(line) > MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = self._file.readline(MB)
            raise _TooLong
        return line.decode("utf-8-sig" if self.number == 1 else "utf-8", "surrogateescape")


def _jsonl(name: str, file: IO[bytes], needed: Needed, header: Sequence[str] | None) -> Numbered:
    rows = _json_objects(_Lines(name, file))
    first = list(islice(rows, FIRST_ROWS))
    depth = max((name.count(".") for name in needed.names()), default=0)
    if objects := [values for _, values, fault in first if fault is None]:
        needed.check(name, (column for values in objects for column in _names(values, depth)))
    yield from chain(first, rows)


def _json_objects(lines: _Lines) -> Numbered:
    while True:
        try:
            line = next(lines)
            if line.strip():
                values = json.loads(line)
                yield (lines.number, values, None) if isinstance(values, dict) else (lines.number, {}, "no object with fields")
        except StopIteration:
            return
        except _TooLong:
            yield lines.number, {}, "line too long"
        except (ValueError, RecursionError):
            yield lines.number, {}, "not JSON"


def _names(values: dict[str, Any], depth: int) -> Iterator[str]:
    for name, item in values.items():
        yield name
        if depth and isinstance(item, dict):
            yield from (f"{name}.{inner}" for inner in _names(item, depth - 1))


def _csv(name: str, file: IO[bytes], needed: Needed, header: Sequence[str] | None) -> Numbered:
    lines = _Lines(name, file)
    yield from _with_header(name, lines, csv.reader(lines, strict=True), needed, header)


def _tsv(name: str, file: IO[bytes], needed: Needed, header: Sequence[str] | None) -> Numbered:
    lines = _Lines(name, file)
    cells = map(lambda line: line.rstrip("\r\n").split("\t"), lines)
    yield from _with_header(name, lines, cells, needed, header)


def _with_header(name: str, lines: _Lines, table: Iterator[list[str]], needed: Needed, header: Sequence[str] | None) -> Numbered:
    rows = _cells(name, lines, table)
    names = list(header) if header else next((cells for _, cells, fault in rows if fault is None), [])
    needed.check(name, names)
    for number, cells, fault in rows:
        if len(cells) > len(names):  # a separator in a cell: to go on would cut the caption there
            fault = "more cells than columns"
        yield number, {column: cell or None for column, cell in zip(names, cells, strict=False)}, fault


def _cells(name: str, lines: _Lines, table: Iterator[list[str]]) -> Iterator[tuple[int, list[str], str | None]]:
    """Rows that are not blank, with the line they begin on."""
    while True:
        number = lines.number + 1
        try:
            if any(cells := next(table)):
                yield number, cells, None
        except StopIteration:
            return
        except _TooLong:
            yield number, [], "line too long"
        except csv.Error as error:
            if lines.number - number > 1 and "limit" in str(error):
                raise UserError(
                    f"{name}:{number}: a quote opens here and is not closed within {csv.field_size_limit()} letters; close it or "
                    'write "" for a quote in a text'
                ) from error
            yield number, [], "not CSV"


def _parquet(name: str, file: IO[bytes], needed: Needed, header: Sequence[str] | None) -> Numbered:
    with tempfile.TemporaryFile() as spooled:
        if not file.seekable():  # it stands in an archive
            shutil.copyfileobj(file, spooled, MB)
        try:
            yield from _parquet_rows(name, file if file.seekable() else spooled, needed)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: not a readable Parquet file ({error})") from error


def _parquet_rows(name: str, file: IO[bytes], needed: Needed) -> Numbered:
    metadata, names, number = pq.read_metadata(file), list(needed.names()), 0
    needed.check(name, (column for field in metadata.schema.to_arrow_schema() for column in _field_names(field)))
    with _as_dictionaries(file, metadata) as probe, pq.ParquetFile(file, metadata=metadata, **BUFFERED) as table:
        for group in range(metadata.num_row_groups):
            _check_lengths(name, number, next(probe.iter_batches(1, [group], names), None))
            for batch in table.iter_batches(PARQUET_ROWS, [group], names):
                step = DECODED_BYTES // max(_check_lengths(name, number, batch), 1)
                for values in chain.from_iterable(_to_dicts(batch[at : at + step]) for at in range(0, len(batch), step)):
                    number += 1
                    yield number, values, None


def _as_dictionaries(file: IO[bytes], metadata: pq.FileMetaData) -> pq.ParquetFile:
    """The file, read so that a text which a million rows share is in memory once: its length is known before the million."""
    leaves = (metadata.schema.column(place) for place in range(len(metadata.schema)))
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    return pq.ParquetFile(file, metadata=metadata, read_dictionary=texts, **BUFFERED)


def _check_lengths(name: str, number: int, batch: pa.RecordBatch | None) -> int:
    """Bytes of the longest text. Raises: UserError if that is more than is read."""
    longest = max(map(_longest, batch.columns), default=0) if batch is not None else 0
    if longest > MAX_TEXT_BYTES:
        raise UserError(f"{name}: a cell of {longest} bytes after row {number}, the limit is {MAX_TEXT_BYTES}; take it out")
    return longest


def _longest(array: pa.Array) -> int:
    """Bytes of the longest text in a column."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _longest(array.dictionary)
    if _is_text(kind):
        return pc.max(pc.binary_length(array)).as_py() or 0
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _longest(array.flatten())
    return max(map(_longest, array.flatten()), default=0) if pa.types.is_struct(kind) else 0


def _is_text(kind: pa.DataType) -> bool:
    return any(is_(kind) for is_ in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary))


def _field_names(field: pa.Field) -> Iterator[str]:
    yield field.name
    if pa.types.is_struct(field.type):
        yield from (f"{field.name}.{inner}" for part in field.type for inner in _field_names(part))


def _to_dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Where text is not UTF-8, all text of the batch stays bytes."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return batch.cast(pa.schema([field.with_type(_bytes(field.type)) for field in batch.schema])).to_pylist()


def _bytes(kind: pa.DataType) -> pa.DataType:
    """A type with binary for text."""
    if pa.types.is_list(kind):
        return pa.list_(_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_bytes(field.type)) for field in kind])
    return pa.binary() if _is_text(kind) else kind


_READERS = {"parquet": _parquet, "csv": _csv, "tsv": _tsv, "jsonl": _jsonl, "ndjson": _jsonl}
