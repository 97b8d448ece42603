"""A folder of your own images, with a table of captions at its top or a .txt beside each image.

Every image in the folder and its sub-folders is a sample, and so is every row of the table; hidden files and folders
are passed over. A key is the path without its suffix, its shard is a hash of the key.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pipeline.config.sources import FolderSource
from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources import metadata
from pipeline.sources.fraction import takes
from pipeline.sources.rows import Row
from pipeline.sources.sample import IMAGE_SUFFIXES, MAX_TEXT_BYTES, Inputs, Listing, Raw, read_file, read_named
from pipeline.sources.text import safe_key, stable_shard


class _Entry(NamedTuple):
    name: str
    origin: str
    file: str | None  # path within the folder, None for a bad row
    values: dict[str, Any]
    fault: str | None = None


def open_shard(name: str, source: FolderSource, shard: int, inputs: Inputs) -> Listing:
    """Images of one shard, in the order of their names.

    Raises: UserError if the folder is missing, holds no image, or its table cannot be used.
    """
    root, where = Path(source.path), f"sources.{name}.path"
    if not root.is_dir():
        raise UserError(f"{where}: no folder {root}")
    entries = _entries(root, where)
    if not entries:
        raise UserError(f"{where}: no images in {root} (known are {', '.join(sorted(IMAGE_SUFFIXES))}) and no metadata table")
    mine = [entry for entry in entries if stable_shard(safe_key(entry.name), source.shards) == shard]
    samples = (_sample(root, entry) if takes(entry.name, source.fraction) else None for entry in mine)
    return Listing(len(mine), "images", enumerate(samples, 1))


def _entries(root: Path, where: str) -> list[_Entry]:
    table = metadata.find(root, where)
    rows = [_from_row(row) for row in metadata.read(table)] if table else []
    listed = {entry.file for entry in rows}
    alone = [_Entry(_stem(file), file, file, {}) for file in _images(root) if file not in listed]
    return sorted(rows + alone, key=lambda entry: (entry.name, entry.file or ""))


def _from_row(row: Row) -> _Entry:
    if row.fault:
        return _Entry(row.place, row.place, None, row.values, row.fault)
    file = PurePosixPath(row.values["file_name"]).as_posix()
    return _Entry(_stem(file), f"{row.place} {file}", file, row.values)


def _stem(file: str) -> str:
    path = PurePosixPath(file)
    return path.with_suffix("").as_posix() if path.suffix else file


def _images(root: Path) -> Iterator[str]:
    """Paths of the images within the folder."""
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
                yield (Path(folder) / name).relative_to(root).as_posix()


def _sample(root: Path, entry: _Entry) -> Raw:
    if entry.file is None:
        return Raw(entry.name, entry.origin, Unusable("bad_row", entry.fault or ""))
    caption, notes = metadata.caption(entry.values), ()
    image = read_named(root, entry.file)
    if caption is None and isinstance(image, bytes):
        caption, notes = _text_beside(root / entry.file)
    return Raw(
        name=entry.name,
        origin=entry.origin,
        image=image,
        captions=(caption,),
        url=entry.values.get("url"),
        license=entry.values.get("license"),
        notes=notes,
    )


def _text_beside(image: Path) -> tuple[bytes | None, tuple[str, ...]]:
    """The .txt of the same name."""
    text = read_file(image.with_suffix(".txt"), MAX_TEXT_BYTES)
    if isinstance(text, bytes):
        return text, ()
    return None, () if text.reason == "missing_file" else (f"its .txt is not used: {text.detail}",)
