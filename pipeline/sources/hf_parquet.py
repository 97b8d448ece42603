"""Images and captions inside parquet files, as most datasets of the Hugging Face hub keep them.

Files are sorted by name and dealt out to the shards in turn. Where there are fewer files than shards, shard s has a part of
file s % files: the shards of a file share its rows in contiguous parts of equal size. A sample is named by the id column,
or by its file and row. Rows are read a few at a time, of the columns that are needed.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.sources import Columns, HfParquetSource
from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources import columns as cells
from pipeline.sources.columns import Needed
from pipeline.sources.fraction import file_shares, takes
from pipeline.sources.in_turn import InTurn, shown
from pipeline.sources.sample import MAX_IMAGE_BYTES, Inputs, Listing, Raw, checked

BATCH_BYTES = 32 * 2**20
BATCH_ROWS = 256
BUFFER_BYTES = 2**20  # without a buffer, or with pre_buffer, pyarrow reads a whole row group, which may be a gigabyte
FAULTS = (pa.ArrowException, OSError, UnicodeDecodeError)  # what pyarrow raises on damaged bytes


class _Part(NamedTuple):
    """What a shard reads of each of its files: contiguous part `number` of `of`, all of it if `of` is 1."""

    number: int
    of: int

    def rows(self, count: int) -> range:
        return range(count * self.number // self.of, count * (self.number + 1) // self.of)


def open_shard(name: str, source: HfParquetSource, shard: int, inputs: Inputs) -> Listing:
    """Samples of one shard.

    Raises: UserError if no file is there, too few can be fetched, or one lacks a column.
    """
    key = f"sources.{name}.files"
    files = inputs.files.expand(key, source.files)
    shares = file_shares(files, source.fraction)
    mine, part = _deal(list(shares), source.shards, shard)
    turn = InTurn(key, mine, inputs)
    samples = _samples(key, source.columns, turn, shares, part)
    passed = len(files) - len(shares)
    # What other shards read too is left to them.
    return Listing(len(mine), "files", samples, turn.delete if part.of == 1 else _keep, files_passed=passed)


def _keep() -> None:
    pass


def _deal(files: list[str], shards: int, shard: int) -> tuple[list[str], _Part]:
    if len(files) >= shards:
        return files[shard::shards], _Part(0, 1)
    place = shard % len(files)
    return [files[place]], _Part(shard // len(files), len(range(place, shards, len(files))))


def _samples(
    key: str, columns: Columns, files: InTurn, shares: dict[str, float], part: _Part
) -> Iterator[tuple[float, Raw | None]]:
    """None for a sample that the key `fraction` passes over. A file that breaks off gives all that came before, then one
    unusable sample that says where."""
    stems = _stems(list(shares))
    for place, (reference, path) in enumerate(files):
        if isinstance(path, Unusable):
            yield place + 1, Raw(shown(reference), shown(reference), path)
            continue
        taken = _Taken(stems[reference], shown(reference), shares[reference])
        row = None
        try:
            with pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
                rows = part.rows(file.metadata.num_rows)
                for row, values in _rows(f"{key}: {shown(reference)}", file, columns, rows):
                    yield place + (row + 1 - rows.start) / len(rows), _sample(values, columns, taken, row)
        except FAULTS as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk, not the file
                raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
            yield place + 1, Raw(shown(reference), shown(reference), _breach(row, error))


class _Taken(NamedTuple):
    """A file whose samples are made."""

    stem: str
    origin: str
    share: float


def _stems(references: list[str]) -> dict[str, str]:
    """What samples without an id are named by: the file's name, or all of its reference if two files have one name."""
    stems = {reference: shown(reference).rpartition("/")[2].removesuffix(".parquet") for reference in references}
    counts = Counter(stems.values())
    return {reference: stem if counts[stem] == 1 else reference for reference, stem in stems.items()}


def _breach(row: int | None, error: Exception) -> Unusable:
    words = " ".join(str(error).split())[:200]
    return Unusable("damaged_archive", f"no parquet{'' if row is None else f' after row {row}'}; what follows is lost ({words})")


def _rows(where: str, file: pq.ParquetFile, columns: Columns, rows: range) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their number in the file.

    Raises: UserError if a column is missing or cannot hold images.
    """
    wanted = _wanted(where, file, columns)
    row = 0
    for group in range(file.num_row_groups):
        content = file.metadata.row_group(group)
        first, row = row, row + content.num_rows
        if first >= rows.stop or row <= rows.start:
            continue
        size = max(1, min(BATCH_ROWS, BATCH_BYTES * content.num_rows // max(content.total_byte_size, 1)))
        for batch in file.iter_batches(size, row_groups=[group], columns=wanted):
            numbers = range(max(first, rows.start), min(first + len(batch), rows.stop))
            for number in numbers:
                yield number, {name: _plain(batch[name][number - first]) for name in batch.schema.names}
            first += len(batch)


def _plain(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return b"\xff"  # no text, and cleaning it says so


def _wanted(where: str, file: pq.ParquetFile, columns: Columns) -> list[str]:
    """The columns to read; of an image's struct its bytes alone."""
    leaves = [file.metadata.schema.column(place).path for place in range(file.metadata.num_columns)]
    there = dict.fromkeys(".".join(leaf.split(".")[:depth]) for leaf in leaves for depth in range(1, leaf.count(".") + 2))
    needed = Needed.of(columns, "image", "id")
    needed.check(where, there)
    kind = _type_of(file.schema_arrow, columns.image)
    if not (_is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)):
        raise UserError(f"{where}: column {columns.image} is of type {kind}; it must hold the images' bytes, or a struct of them")
    image = columns.image if _is_binary(kind) else f"{columns.image}.bytes"
    return [image, *(name for name in (*needed.names(), columns.url) if name != columns.image and name in there)]


def _type_of(schema: pa.Schema, name: str) -> pa.DataType:
    if name in schema.names:
        return schema.field(name).type
    first, *inner = name.split(".")
    kind = schema.field(first).type
    for part in inner:
        kind = kind.field(part).type if pa.types.is_struct(kind) else pa.null()
    return kind


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _sample(values: dict[str, Any], columns: Columns, file: _Taken, row: int) -> Raw | None:
    """None if the key `fraction` passes it over."""
    given = cells.value(values, columns.id)
    name = f"{file.stem}_{row:08d}" if given is None else str(given)
    if not takes(name, file.share):
        return None
    captions = cells.captions(values, columns)
    return Raw(
        name=name,
        origin=f"{file.origin}:{row}",
        image=checked(_image(cells.value(values, columns.image)), cells.value(values, columns.sha256)),
        captions=captions,
        several=len(captions) > 1,
        url=cells.value(values, columns.url),
        license=cells.value(values, columns.license),
        scores=cells.scores(values, columns),
    )


def _image(cell: Any) -> bytes | Unusable:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        return Unusable("no_image", "no bytes; a path alone leads nowhere")
    if len(data) > MAX_IMAGE_BYTES:
        return Unusable("too_large", f"{len(data)} bytes, the limit is {MAX_IMAGE_BYTES}")
    return data
