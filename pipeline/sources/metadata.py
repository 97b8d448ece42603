"""The table of a folder of images: metadata.jsonl, .csv or .parquet, one row an image.

Columns: file_name, text (or caption), and url and license if there are any. Bytes that are not UTF-8 are kept as
surrogates, so that one bad caption costs no other row.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError

COLUMNS = ("file_name", "text", "caption", "url", "license")


class Row(NamedTuple):
    """One row: where it stands, its columns, or what is wrong with it."""

    origin: str
    values: dict[str, Any]
    fault: str | None = None


def find(folder: Path, where: str) -> Path | None:
    """The folder's table, if it has one. Raises: UserError if it has several."""
    found = [path for suffix in ("jsonl", "csv", "parquet") if (path := folder / f"metadata.{suffix}").is_file()]
    if len(found) > 1:
        raise UserError(f"{where}: {' and '.join(path.name for path in found)} are both there; keep one of them")
    return found[0] if found else None


def read(path: Path) -> Iterator[Row]:
    """Rows in their order. Raises: UserError if the file or its columns cannot be used at all."""
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    try:
        for place, values, fault in readers[path.suffix](path):
            usable = isinstance(values.get("file_name"), str) and values["file_name"]
            yield Row(f"{path.name}:{place}", values, fault or (None if usable else "no file_name"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def caption(values: dict[str, Any]) -> Any:
    return values.get("text") if values.get("text") is not None else values.get("caption")


Numbered = Iterator[tuple[int, dict[str, Any], str | None]]  # line or row number, columns, fault


def _jsonl(path: Path) -> Numbered:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                yield number, {}, "not JSON"
                continue
            yield (number, values, None) if isinstance(values, dict) else (number, {}, "no object with fields")


def _csv(path: Path) -> Numbered:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        table = csv.reader(file)
        header = next(table, [])
        _check_columns(path, header)
        while True:
            try:
                cells = next(table)
            except StopIteration:
                return
            except csv.Error as error:
                yield table.line_num, {}, f"not CSV ({error})"
                continue
            if cells:
                yield table.line_num, *_cells(header, cells)


def _cells(header: list[str], cells: list[str]) -> tuple[dict[str, Any], str | None]:
    values = {column: cell or None for column, cell in zip(header, cells, strict=False)}
    if len(cells) > len(header):  # an unquoted comma: to go on would cut the caption there
        return values, f"{len(cells)} cells for {len(header)} columns; text with a comma needs quotes"
    return values, None


def _parquet(path: Path) -> Numbered:
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            wanted = [column for column in COLUMNS if column in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(columns=wanted):
                for values in batch.to_pylist():
                    number += 1
                    yield number, values, None
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from error


def _check_columns(path: Path, columns: list[str]) -> None:
    found = f"found {', '.join(columns) or 'none'}"
    if "file_name" not in columns:
        raise UserError(f"{path}: needs a column file_name, {found}")
    if not {"text", "caption"} & set(columns):
        raise UserError(f"{path}: needs a column text (or caption), {found}")
