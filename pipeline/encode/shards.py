"""The files that encode writes: an Arrow file with a sidecar that names its input, so that it is made only once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.artifacts import BLOCK_ROWS, Sidecar, atomic, fixed_size_list, read_sidecar, variable_list, write_sidecar
from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Bad = dict[str, str]  # row number -> why the row holds zeros
INT8_MAX = 127


@dataclass(frozen=True)
class Target:
    """An Arrow file to have. `kind` is latents or text; `input_sha256` identifies the file it is made from."""

    path: Path
    kind: str
    input_sha256: str

    @property
    def sidecar(self) -> Path:
        return self.path.with_suffix(".json")

    def existing(self) -> Sidecar | None:
        """The sidecar, if the file is there, whole, and made from the same input; its path names the model."""
        try:
            found = read_sidecar(self.sidecar, self.kind)
        except UserError:
            return None  # missing or damaged: it is made again
        return found if found.info["input_sha256"] == self.input_sha256 else None

    def describe(self, rows: int, shape: Sequence[int], bad_rows: Bad, facts: dict[str, Any]) -> Sidecar:
        """Write the sidecar of the finished file."""
        info = {"input_sha256": self.input_sha256, "shape": list(shape), "bad_rows": bad_rows, **facts}
        return write_sidecar(self.sidecar, self.kind, {self.kind: (self.path, rows)}, info)


class BlockWriter:
    """Gathers rows and writes them in record batches of BLOCK_ROWS, whatever the sizes they come in."""

    def __init__(self, sink: pa.ipc.RecordBatchFileWriter, schema: pa.Schema) -> None:
        self._sink = sink
        self._schema = schema
        self._columns: list[list[Any]] = [[] for _ in schema]

    def add(self, *columns: Sequence[Any]) -> None:
        """Rows, a sequence a column; arrays [B, ...] for lists, or B arrays where lists differ in length."""
        for column, values in zip(self._columns, columns, strict=True):
            column.extend(values)
        while len(self._columns[0]) >= BLOCK_ROWS:
            self.flush(BLOCK_ROWS)

    def flush(self, rows: int) -> None:
        """Write the first `rows` gathered rows as one record batch."""
        if not self._columns[0]:
            return
        arrays = [_array(field, column[:rows]) for field, column in zip(self._schema, self._columns, strict=True)]
        self._sink.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._columns = [column[rows:] for column in self._columns]


def _array(field: pa.Field, values: list[Any]) -> pa.Array:
    if pa.types.is_fixed_size_list(field.type):
        return fixed_size_list(np.stack(values), field.type.value_type.to_pandas_dtype())
    if pa.types.is_list(field.type):
        return variable_list(values, field.type.value_type.to_pandas_dtype())
    return pa.array(values, field.type)


@contextmanager
def block_writer(target: Target, schema: pa.Schema) -> Iterator[BlockWriter]:
    """Writes `target.path` atomically. The old sidecar goes first: it must never describe a newer file."""
    target.sidecar.unlink(missing_ok=True)
    with atomic(target.path) as temporary, pa.ipc.new_file(str(temporary), schema) as sink:
        writer = BlockWriter(sink, schema)
        yield writer
        writer.flush(BLOCK_ROWS)


def to_half(values: "Tensor", first_row: int) -> tuple["Tensor", Bad]:
    """[B, ...] float32 to float16. Rows that have no finite fp16 values become zeros and are named with the reason."""
    half = values.half()
    finite, fits = (numbers.isfinite().flatten(1).all(1) for numbers in (values, half))
    finite, wrong = finite.cpu().numpy(), (~fits).cpu().numpy()
    if wrong.any():
        half[~fits] = 0
    return half, {str(first_row + row): "fp16_overflow" if finite[row] else "not_finite" for row in np.flatnonzero(wrong)}


def to_int8(half: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Text [B, L, Dt] float16 to int8 of the same shape and scales [B, L] float16, one a token: value ≈ int8 · scale.

    Symmetric: the largest value of a token becomes ±127, and zero stays zero.
    """
    values = half.float()
    scales = (values.abs().amax(-1) / INT8_MAX).half()
    divisors = scales.float()[:, :, None]
    return (values / divisors.where(divisors > 0, 1)).round().clamp(-INT8_MAX, INT8_MAX).char(), scales
