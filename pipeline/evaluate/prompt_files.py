"""Files of prompts: a path, a URL or a file on the hub. They come from elsewhere, so what is read of them is bounded."""

import csv
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts import sha256_file
from pipeline.download.files import Files
from pipeline.errors import UserError
from pipeline.ledger import Unusable

MAX_BYTES = 16 * 2**20
MAX_ROWS = 100_000
MAX_LETTERS = 2_000  # of a prompt
COLUMNS = ("prompt", "prompts")


class Named(NamedTuple):
    """A prompt with the category that its file gives it, "" without one."""

    text: str
    category: str


def fetch(key: str, reference: str, files: Files, sha256: str | None = None) -> Path:
    """The file on this machine. Raises: UserError naming the key if it cannot be had, or has another hash."""
    try:
        file = files.fetch(reference)
    except Unusable as failure:
        raise UserError(f"{key}: {reference}: {failure.detail or failure}") from failure
    if sha256 is not None and (found := sha256_file(file)) != sha256:  # also of a file that is here from an earlier run
        raise UserError(f"{key}: {reference}: its sha256 is {found}, it should be {sha256}")
    return file


def read_lines(file: Path, source: str) -> list[str]:
    """Raises: UserError if the file is too large or no UTF-8."""
    if file.stat().st_size > MAX_BYTES:
        raise UserError(f"{source}: {file.stat().st_size:,} bytes; a file of prompts has at most {MAX_BYTES:,}")
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def read_named(file: Path, source: str) -> list[Named]:
    """Prompts of a .txt, a line each, or of a .tsv or .csv with the columns Prompt (or Prompts) and Category. A URL may
    have no ending; it is taken for CSV.

    Raises: UserError naming the file and the row.
    """
    lines = read_lines(file, source)
    if file.suffix.lower() == ".txt":
        found = [Named(line.strip(), "") for line in lines if line.strip()]
    elif file.suffix.lower() == ".tsv":  # a tab needs no quotes around a text, so quotes are part of it
        found = list(_rows(source, csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)))
    else:
        found = list(_rows(source, csv.reader(f"{line}\n" for line in lines)))
    if not 0 < len(found) <= MAX_ROWS:
        raise UserError(f"{source}: {len(found):,} prompts; it must have 1 to {MAX_ROWS:,}")
    for number, one in enumerate(found, 1):
        if len(one.text) > MAX_LETTERS:
            raise UserError(f"{source}: prompt {number} has {len(one.text):,} letters; at most {MAX_LETTERS:,}")
    return found


def _rows(source: str, table: Any) -> Iterator[Named]:
    """Of a csv.reader; rows without a prompt are passed over."""
    try:
        header = [name.strip().lower() for name in next(table, [])]
        column = next((header.index(name) for name in COLUMNS if name in header), None)
        if column is None:
            raise UserError(f"{source}: its first line names no column Prompt or Prompts; a .txt has a prompt a line instead")
        category = header.index("category") if "category" in header else None
        for row in table:
            if len(row) > column and (text := row[column].strip()):
                yield Named(text, row[category].strip() if category is not None and len(row) > category else "")
    except csv.Error as error:
        raise UserError(f"{source}: line {table.line_num}: {error}") from error


def spread(groups: Sequence[Hashable], limit: int | None) -> list[int]:
    """Indices of at most `limit` items, ascending: the first ones of every group in turn, so that none is left out."""
    if limit is None or limit >= len(groups):
        return list(range(len(groups)))
    seen: dict[Hashable, int] = {}
    turns = []
    for i, group in enumerate(groups):
        turns.append((seen.setdefault(group, 0), i))
        seen[group] += 1
    return sorted(i for _, i in sorted(turns)[:limit])
