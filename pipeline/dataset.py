"""Reading data sets: Arrow shards block by block, and the manifest that names a stage's samples.

A record batch is a block of BLOCK_ROWS rows, only the last one of a shard may have fewer. A block is one sequential
read: from a memory map, or by `pread` on file systems where a map is slow (page faults of 4 KB) and unsafe (SIGBUS when
a file changes).
"""

import json
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa

from pipeline.artifacts import BLOCK_ROWS, BUCKET, BUCKETED_INDEX, INDEX, check_content, read_json, read_sidecar
from pipeline.errors import UserError
from pipeline.fingerprint import digest

Reading = Literal["mapped", "read"]
ADVICE = 1 << 20  # bytes; Linux cuts advice off at what the disk takes at once
SCALES = "scales"  # column of files whose values are int8
KEYS = pa.ipc.IpcReadOptions(included_fields=[0])  # nothing else of the file is read
BUCKETS = pa.ipc.IpcReadOptions(included_fields=[2])


class Block(NamedTuple):
    """Rows of a shard: row n is values[starts[n] : starts[n + 1]], with `scales` after `dequantised`."""

    values: np.ndarray  # float16, or int8 with scales; all rows one after another
    starts: Sequence[int]
    scales: np.ndarray | None = None  # float16, one a token

    @property
    def width(self) -> int:
        """Values that share a scale."""
        return len(self.values) // max(1, len(self.scales))


class ArrowShard:
    """Random access to one latents or text shard. May be used by several threads.

    `shape` is the shape of a row's values, `info` what made them. With `buckets` among it, rows have the shape of one of
    these instead, and no more values. Blocks are views of the file if `reading` is "mapped",
    copies if it is "read"; single rows are views either way. A file that is replaced meanwhile stays as it was, one that
    is cut breaks views.
    Raises: UserError naming the file if it cannot be opened or read, or was not written in blocks of BLOCK_ROWS rows.
    """

    def __init__(self, path: Path, column: str, reading: Reading = "mapped") -> None:
        self.path = path
        with _readable(path):
            self._file = pa.OSFile(str(path))
            self._source = self._map if reading == "mapped" else self._file
            reader = pa.ipc.open_file(self._source)
            schema, self.blocks = reader.schema, int(reader.num_record_batches)
            _check(schema, column)
            self.shape: tuple[int, ...] = tuple(json.loads(schema.metadata[b"shape"]))
            self.info: dict[str, Any] = json.loads(schema.metadata[b"info"])

    def __len__(self) -> int:
        if not self.blocks:
            return 0
        with _readable(self.path):
            last = pa.ipc.open_file(self._source, options=KEYS).get_batch(self.blocks - 1)
        return (self.blocks - 1) * BLOCK_ROWS + len(last)

    @property
    def keys(self) -> list[str]:
        """Names of the rows; nothing else of the file is read."""
        with _readable(self.path):
            keys = pa.ipc.open_file(self._source, options=KEYS).read_all()["key"]
            keys.validate(full=True)
            return keys.to_pylist()

    @property
    def row_buckets(self) -> np.ndarray:
        """The bucket [rows] int16 of every row; nothing else of the file is read."""
        with _readable(self.path):
            return pa.ipc.open_file(self._source, options=BUCKETS).read_all()[BUCKET.name].to_numpy()

    def block(self, number: int, ahead: bool = True) -> Block:
        """Rows number · BLOCK_ROWS and on, in one read of the file; not `ahead`: of a map only what is looked at."""
        with _readable(self.path):
            batch = self._batch(self._source, number)
            if ahead and self._source is not self._file:
                self._read_ahead(batch.column(1).values.buffers()[1])
            return self._block(batch)

    def row(self, index: int) -> np.ndarray:
        """One row, float16, in the shape of its bucket, or [*shape], filled up with zeros where it is shorter. Reads
        nothing of the other rows, which takes a map: from a file Arrow reads no less than a block."""
        number, inside = divmod(index, BLOCK_ROWS)
        with _readable(self.path):
            batch = self._batch(self._map, number)
            block = self._block(batch)
            if inside >= len(block.starts) - 1:
                raise ValueError(f"has no row {index}")
            row = dequantised(block, inside)
            if "buckets" in self.info:
                return row.reshape(self.shape[0], *self.info["buckets"][batch.column(BUCKET.name)[inside].as_py()])
        missing = int(np.prod(self.shape)) - len(row)
        return (np.pad(row, (0, missing)) if missing else row).reshape(self.shape)

    @cached_property
    def _map(self) -> pa.Buffer:
        """The whole file. Views keep it alive. Arrow's own map would ask for all of a block where one row is wanted."""
        return pa.py_buffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))

    def _batch(self, source: pa.Buffer | pa.NativeFile, number: int) -> pa.RecordBatch:
        batch = pa.ipc.open_file(source).get_batch(number)  # a reader a call: threads may share files, but not readers
        if len(batch) > BLOCK_ROWS or (len(batch) < BLOCK_ROWS and number < self.blocks - 1):
            raise ValueError(f"record batch {number} has {len(batch)} rows, not {BLOCK_ROWS}")
        rows = batch.column(1)
        rows.validate()  # its lengths fit its buffers
        values = rows.values.buffers()[1]
        if values.size and values.parent is None:  # not a part of what was read
            raise ValueError("is compressed")
        return batch

    def _block(self, batch: pa.RecordBatch) -> Block:
        rows, width = batch.column(1), int(np.prod(self.shape))
        starts = _starts(rows)
        lengths = np.diff(starts)
        if (lengths < 0).any() or (lengths > width).any():
            raise ValueError(f"has a row of more than {width} values")
        if rows.type.value_type == pa.float16():
            return Block(rows.values.to_numpy(), starts.tolist())
        scales = batch.column(SCALES)
        scales.validate()
        if not np.array_equal(_starts(scales) * self.shape[-1], starts):
            raise ValueError("has a token without its scale")
        return Block(rows.values.to_numpy(), starts.tolist(), scales.values.to_numpy())

    def _read_ahead(self, values: pa.Buffer) -> None:
        """Ask the kernel for all of a block's values, so that a cold disk reads them in one go."""
        start = values.address - self._map.address
        if hasattr(os, "posix_fadvise"):  # macOS has none
            for offset in range(start, start + values.size, ADVICE):
                os.posix_fadvise(self._file.fileno(), offset, ADVICE, os.POSIX_FADV_WILLNEED)


def _starts(rows: pa.ListArray | pa.FixedSizeListArray) -> np.ndarray:
    """Where each row begins among the values of all, and where the last one ends."""
    if rows.null_count:
        raise ValueError("has rows without values")
    return rows.offsets.to_numpy() if pa.types.is_list(rows.type) else np.arange(len(rows) + 1) * rows.type.list_size


def dequantised(block: Block, row: int) -> np.ndarray:
    """Values of a row, float16."""
    start, end = block.starts[row : row + 2]
    if block.scales is None:
        return block.values[start:end]
    width = block.width
    scales = block.scales[start // width : end // width].astype(np.float32)  # a product is rounded once
    return (block.values[start:end].reshape(-1, width) * scales[:, None]).astype(np.float16).reshape(-1)


def _check(schema: pa.Schema, column: str) -> None:
    if schema.names[:2] != ["key", column]:
        raise ValueError(f"columns {schema.names}, not key and {column}")
    kind = schema.types[1]
    name, wanted = ("int8", pa.int8()) if SCALES in schema.names else ("float16", pa.float16())
    if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)) or kind.value_type != wanted:
        raise ValueError(f"{column} is {kind}, not lists of {name}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Arrow file ({error}); delete it and run again") from error


class Index(NamedTuple):
    """Columns of an index, [samples] each: views of the file."""

    shard: np.ndarray  # int32, place in the manifest's shards
    row: np.ndarray  # int32, row of the latents
    text: np.ndarray  # int32, first row of the text embeddings to choose among
    texts: np.ndarray  # int16, how many
    given: np.ndarray  # int16, how many of these came with the image, before those that a model wrote
    bucket: np.ndarray | None = None  # int16, place in the manifest's buckets; None: all latents have one shape

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises: UserError if it is no index."""
        with _readable(path):
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            if table.schema.names not in (INDEX.names, BUCKETED_INDEX.names):
                raise ValueError(f"columns {table.schema.names}, not {INDEX.names}")
            return cls(*(_whole(column) for column in table.columns))


def _whole(column: pa.ChunkedArray) -> np.ndarray:
    return column.chunk(0).to_numpy() if column.num_chunks == 1 else column.to_numpy()  # one chunk needs no copy


class Bucket(NamedTuple):
    """A shape of latents, in latent pixels, and how many samples to train on have it."""

    height: int
    width: int
    samples: int


class Manifest:
    """The samples a stage trains on: row n of `index` names the shard and the rows in it that hold sample n.

    `latent_shape` is (C, h, w), `text_shape` (L, Dt); with `buckets` the former is that of the square one, which has the
    most values, and the index says which bucket a sample is of; `vae` and `text_encoder` are the identities of the models;
    `sources` gives the rows [first, end) of each source in the index.
    """

    def __init__(self, path: Path, value: dict[str, Any]) -> None:
        self.path = path
        self.value = value
        self.stage: str = value["stage"]
        self.px: int = value["px"]
        self.samples: int = value["samples"]
        self.latent_shape: tuple[int, int, int] = tuple(value["latent_shape"])
        self.text_shape: tuple[int, int] = tuple(value["text_shape"])
        self.buckets: list[Bucket] = [Bucket(**bucket) for bucket in value.get("buckets", [])]
        self.text_padding: str = value["text_padding"]
        self.vae: dict[str, Any] = value["vae"]
        self.text_encoder: dict[str, Any] = value["text_encoder"]
        self.sources: dict[str, tuple[int, int]] = {name: (first, end) for name, (first, end) in value["sources"].items()}
        self.shards: list[dict[str, Any]] = value["shards"]
        self.counts: dict[str, Any] = value["counts"]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises: UserError if it is missing, no manifest or damaged, or its index is missing or of another size."""
        sidecar = read_sidecar(path, "manifest")
        value = read_json(path)
        if missing := {"sources", "text_padding"} - set(value):
            raise UserError(f"{path}: has no {', '.join(sorted(missing))}; an older program wrote it, delete it and run again")
        try:
            manifest = cls(sidecar.path, value)
            _check_types(manifest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); delete it and run again") from error
        return manifest

    def latents(self, shard: int, reading: Reading = "mapped") -> ArrowShard:
        """Rows [C, h, w], float16."""
        return ArrowShard(self._file(self.shards[shard]["latents"]), "latent", reading)

    def text(self, shard: int, reading: Reading = "mapped") -> ArrowShard:
        """Rows [L, Dt], float16; one or more for each row of `latents`."""
        return ArrowShard(self._file(self.shards[shard]["text"]), "tokens", reading)

    @cached_property
    def index(self) -> Index:
        """The samples to train on."""
        return Index.read(self._checked("index"))

    @cached_property
    def validation(self) -> Index:
        """The samples held out, of which there may be none."""
        return Index.read(self._checked("validation"))

    @property
    def samples_digest(self) -> str:
        """Short hash of what training reads: the shards' content and the index; not paths, not counts."""
        content = [[shard["latents"]["sha256"], shard["text"]["sha256"]] for shard in self.shards]
        return digest({"shards": content, "index": self.value["files"]["index"]["sha256"]})

    def _checked(self, name: str) -> Path:
        record = self.value["files"][name]
        check_content(file := self._file(record), record["sha256"], self.path)
        return file

    def _file(self, record: dict[str, Any]) -> Path:
        return Path(os.path.normpath(self.path.parent / record["path"]))


def _check_types(manifest: Manifest) -> None:
    """Raises TypeError or KeyError where a number or a record is none."""
    numbers = [manifest.px, manifest.samples, *manifest.latent_shape, *manifest.text_shape]
    numbers += [end for ends in manifest.sources.values() for end in ends]
    records = [shard[kind] for shard in manifest.shards for kind in ("latents", "text")]
    records += [manifest.value["files"][name] for name in ("index", "validation")]
    texts = [manifest.stage, *(record[key] for record in records for key in ("path", "sha256"))]
    if not all(isinstance(number, int) for number in numbers) or not all(isinstance(text, str) for text in texts):
        raise TypeError("a number or a record of a file is none")
