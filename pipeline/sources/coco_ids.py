"""The file of ids of a COCO source: which images to use, in which order, and with which caption.

A CSV with a column image_id and, if there are captions to use, one called prompt or caption; or a text file with an id a
line. Published lists write ids with leading zeros.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError

CAPTIONS = ("prompt", "caption")


class Asked(NamedTuple):
    """An image to use."""

    line: int  # of the file
    id: int
    caption: str | None  # None: as annotated


def read_ids(name: str, path: Path) -> list[Asked]:
    """Raises: UserError if the file cannot be read, is of another form, is empty, or has an id twice."""
    where = f"sources.{name}.ids: {path}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            asked = list(_rows(where, file) if "image_id" in header else _lines(where, file))
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where}: neither a CSV nor a text file in UTF-8 ({error})") from error
    if not asked:
        raise UserError(f"{where}: no ids")
    first: dict[int, int] = {}
    for one in asked:
        if first.setdefault(one.id, one.line) != one.line:
            raise UserError(f"{where}:{one.line}: image {one.id} again, it is in line {first[one.id]}; an image has one caption")
    return asked


def _rows(where: str, file: Iterator[str]) -> Iterator[Asked]:
    rows = csv.DictReader(file)
    column = next((name for name in CAPTIONS if name in rows.fieldnames), None)
    for row in rows:
        if row.get(None):
            raise UserError(f"{where}:{rows.line_num}: more cells than columns; text with a comma needs quotes")
        caption = row[column] if column else None
        if column and not (caption or "").strip():
            raise UserError(f"{where}:{rows.line_num}: no {column}; give one, or leave the column away")
        yield Asked(rows.line_num, _id(f"{where}:{rows.line_num}", row["image_id"]), caption)


def _lines(where: str, file: Iterator[str]) -> Iterator[Asked]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield Asked(number, _id(f"{where}:{number}", line), None)


def _id(where: str, text: str | None) -> int:
    digits = (text or "").strip()
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 18):
        raise UserError(f"{where}: '{digits[:40]}' is no image id; a CSV needs a column image_id, a text file an id a line")
    return int(digits)
