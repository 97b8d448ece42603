"""Data sets of random numbers in the form that training reads, of any size."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.artifacts import (
    BLOCK_ROWS,
    BUCKETED_INDEX,
    INDEX,
    atomic,
    file_record,
    fixed_size_list,
    latents_schema,
    text_schema,
    variable_list,
    write_json,
)

ONE = 0x3C00  # bits of 1.0 in float16; all below are finite


@dataclass(frozen=True)
class DataSet:
    """What to make. `rows` samples in `shards` of the same size; with `files` there are only so many different shards,
    so that millions of rows fit on a disk. Sample n of a shard has 1 + n % captions captions, one of them given; `kept`
    is the share of the rows that the index names, `held_out` how many it leaves to validation; sources share out the
    shards. With `buckets` (height and width) latents have these shapes at random, the first ones most often; none has more
    values than `latent`.
    """

    rows: int = 16384
    shards: int = 4
    latent: tuple[int, int, int] = (4, 32, 32)
    text: tuple[int, int] = (77, 1024)
    files: int | None = None
    captions: int = 1
    padding: str = "attend"
    storage: str = "float16"  # of the text, or int8
    kept: float = 1.0
    held_out: int = 0
    sources: tuple[str, ...] = ("synthetic",)
    buckets: tuple[tuple[int, int], ...] = ()

    @property
    def shard_rows(self) -> int:
        return self.rows // self.shards

    def write(self, folder: Path) -> Path:
        """Write shards, indexes and the manifest; returns the manifest's path."""
        assert self.rows % self.shards == 0 and self.shards >= len(self.sources)
        folder.mkdir(parents=True, exist_ok=True)
        files = [self._write_shard(folder, number) for number in range(self.files or self.shards)]
        ends = np.linspace(0, self.shards, len(self.sources) + 1).astype(int)
        names = np.repeat(self.sources, np.diff(ends)).tolist()
        shards = [{"source": name, "shard": f"{n:05d}", **files[n % len(files)]} for n, name in enumerate(names)]
        columns = self._index()
        index = {name: column[: len(column) - self.held_out] for name, column in columns.items()}
        held_out = {name: column[len(column) - self.held_out :] for name, column in columns.items()}
        rows = np.searchsorted(index["shard"], ends).tolist()
        manifest: dict[str, Any] = {
            "kind": "manifest",
            "stage": "bench",
            "px": 8 * self.latent[1],
            "samples": len(index["row"]),
            "latent_shape": self.latent,
            "text_shape": self.text,
            "text_padding": self.padding,
            "vae": {},
            "text_encoder": {},
            "files": {
                "index": _write_index(index, folder / "index.arrow"),
                "validation": _write_index(held_out, folder / "validation.arrow"),
            },
            **self._count_buckets(index),
            "info": {},
            "sources": {name: rows[n : n + 2] for n, name in enumerate(self.sources)},
            "shards": shards,
            "counts": {},
        }
        write_json(folder / "manifest.json", manifest)
        return folder / "manifest.json"

    def _index(self) -> dict[str, np.ndarray]:
        texts = self._texts()
        one = {"row": np.arange(self.shard_rows), "text": np.cumsum(texts) - texts, "texts": texts, "given": texts > 0}
        columns = {"shard": np.repeat(np.arange(self.shards, dtype=np.int32), self.shard_rows)}
        if self.buckets:
            one["bucket"] = self._row_buckets()
        columns |= {name: np.tile(values.astype(np.int32), self.shards) for name, values in one.items()}
        if self.kept < 1:
            kept = np.random.default_rng(1).random(self.rows) < self.kept
            columns = {name: values[kept] for name, values in columns.items()}
        return columns

    def _row_buckets(self) -> np.ndarray:
        """[rows of a shard], the same in all."""
        shares = 1 / np.arange(1, len(self.buckets) + 1)
        return np.random.default_rng(3).choice(len(self.buckets), self.shard_rows, p=shares / shares.sum())

    def _count_buckets(self, index: dict[str, np.ndarray]) -> dict[str, Any]:
        if not self.buckets:
            return {}
        counts = np.bincount(index["bucket"], minlength=len(self.buckets)).tolist()
        shapes = zip(self.buckets, counts, strict=True)
        return {"buckets": [{"height": height, "width": width, "samples": count} for (height, width), count in shapes]}

    def _texts(self) -> np.ndarray:
        return 1 + np.arange(self.shard_rows) % self.captions

    def _write_shard(self, folder: Path, number: int) -> dict[str, Any]:
        random = np.random.default_rng([2, number])
        texts = int(self._texts().sum())
        schema = text_schema(self.text, {"padding": self.padding, "dtype": self.storage})
        path = folder / f"latents-{number}.arrow"
        if self.buckets:
            latents = _write_bucketed(path, self.latent, self.buckets, self._row_buckets(), random)
        else:
            latents = _write_blocks(path, latents_schema(self.latent, {}), self.shard_rows, random)
        return {"latents": latents, "text": _write_blocks(folder / f"text-{number}.arrow", schema, texts, random)}


def _write_bucketed(
    path: Path, shape: tuple[int, int, int], buckets: Sequence[tuple[int, int]], of_rows: np.ndarray, random: np.random.Generator
) -> dict[str, Any]:
    """As `_write_blocks`, latents in the shapes of their buckets."""
    schema = latents_schema(shape, {"buckets": buckets})
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), schema) as sink:
        for first in range(0, len(of_rows), BLOCK_ROWS):
            part = of_rows[first : first + BLOCK_ROWS]
            sizes = [shape[0] * height * width for height, width in (buckets[number] for number in part)]
            values = variable_list([random.integers(0, ONE, size, np.uint16).view(np.float16) for size in sizes])
            keys = pa.array([str(first + n) for n in range(len(part))])
            sink.write_batch(pa.record_batch([keys, values, pa.array(part, pa.int16())], schema=schema))
    return {"path": path.name, "sha256": ""}


def _write_blocks(path: Path, schema: pa.Schema, rows: int, random: np.random.Generator) -> dict[str, Any]:
    """Random rows, in record batches as encode writes them."""
    shape = json.loads(schema.metadata[b"shape"])
    variable, small = pa.types.is_list(schema.types[1]), "scales" in schema.names
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), schema) as sink:
        for first in range(0, rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, rows - first)
            lengths = random.integers(1, shape[0] + 1, count) if variable else np.full(count, shape[0])
            values = random.integers(0, ONE, (count, *shape), np.uint16).view(np.float16)
            scales = [random.integers(0, ONE, (count, shape[0]), np.uint16).view(np.float16)] if small else []
            values = values.view(np.int8)[..., ::2] if small else values
            values, *scales = (_lists(part, lengths, variable) for part in (values, *scales))
            columns = [pa.array([str(first + n) for n in range(count)]), values, pa.array(lengths, pa.int32()), *scales]
            sink.write_batch(pa.record_batch(columns[: len(schema)], schema=schema))
    return {"path": path.name, "sha256": ""}  # nothing that reads these files asks for it


def _lists(values: np.ndarray, lengths: np.ndarray, variable: bool) -> pa.Array:
    if not variable:
        return fixed_size_list(values, values.dtype)
    return variable_list([row[:length] for row, length in zip(values, lengths, strict=True)], values.dtype)


def _write_index(columns: dict[str, np.ndarray], path: Path) -> dict[str, Any]:
    schema = BUCKETED_INDEX if "bucket" in columns else INDEX
    arrays = [pa.array(columns[field.name].astype(field.type.to_pandas_dtype(), copy=False)) for field in schema]
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), schema) as sink:
        sink.write_batch(pa.record_batch(arrays, schema=schema))
    return file_record(path, len(arrays[0]), path.parent)
