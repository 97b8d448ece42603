"""The table of a folder of images: metadata.jsonl, .csv or .parquet, one row an image.

Columns: file_name, text (or caption), and url and license if there are any.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.sources import rows
from pipeline.sources.columns import Needed
from pipeline.sources.rows import Row

NEEDED = Needed(("file_name",), ("text", "caption"), ("url", "license"), "call the columns so")


def find(folder: Path, where: str) -> Path | None:
    """The folder's table, if it has one. Raises: UserError if it has several."""
    found = [path for suffix in ("jsonl", "csv", "parquet") if (path := folder / f"metadata.{suffix}").is_file()]
    if len(found) > 1:
        raise UserError(f"{where}: {' and '.join(path.name for path in found)} are both there; keep one of them")
    return found[0] if found else None


def read(path: Path) -> Iterator[Row]:
    """Rows in their order. Raises: UserError if the file or its columns cannot be used at all."""
    for row in rows.read(path, NEEDED):
        usable = isinstance(row.values.get("file_name"), str) and row.values["file_name"]
        yield row if row.fault or usable else row._replace(fault="no file_name")


def caption(values: dict[str, Any]) -> Any:
    return values.get("text") if values.get("text") is not None else values.get("caption")
