"""metrics.jsonl: a line every so many images. Losses stay on the device until a line or a checkpoint needs them."""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.artifacts import atomic
from pipeline.diffusion import EDM
from pipeline.engine.step import Measured
from pipeline.errors import UserError
from pipeline.train.processes import Processes

QUARTILES = (-0.6745, 0.0, 0.6745)  # of a standard normal, the distribution of the noise levels' logarithm


class Row(NamedTuple):
    """What was measured in one step, over all processes; losses by quartile of the noise level, from clean to noisy."""

    sums: list[float]  # [4]
    counts: list[float]  # [4]
    grad_norm: float
    skipped: bool


class Losses:
    """What was measured in the steps since the last line. `rows`, of steps that were taken, are part of a checkpoint's state."""

    def __init__(self, edm: EDM, rows: list[list[Any]], batch_images: int, first: int) -> None:
        self.rows = [Row(*row) for row in rows]
        self._edges = torch.tensor([edm.p_std * edge + edm.p_mean for edge in QUARTILES]).exp()
        self._pending: list[Measured] = []
        self._batch, self._first = batch_images, first

    def add(self, measured: Measured) -> None:
        """One step. Costs nothing on the device."""
        self._pending.append(measured)

    def collect(self, processes: Processes) -> list[tuple[Row, list[int]]]:
        """Read what is pending from the device, summed over the processes. Returns the new rows, and for each that was
        skipped the places in the global batch whose loss is not finite."""
        if not self._pending:
            return []
        pending, self._pending = self._pending, []
        sums = processes.total(torch.stack([self._sums(measured) for measured in pending])).tolist()
        ends = torch.stack([torch.stack([m.grad_norm.float(), m.skipped.float()]) for m in pending]).tolist()
        new = [Row(row[:4], row[4:], norm, bool(skipped)) for row, (norm, skipped) in zip(sums, ends, strict=True)]
        self.rows += [row for row in new if not row.skipped]
        return [(row, self._not_finite(m, processes) if row.skipped else []) for row, m in zip(new, pending, strict=True)]

    def _sums(self, measured: Measured) -> Tensor:
        """[8]: sums of the losses and counts of the images by quartile."""
        values = torch.cat([loss.per_image for loss in measured.losses]).float()
        quartile = torch.bucketize(torch.cat([loss.sigma for loss in measured.losses]), self._edges.to(values.device))
        member = torch.nn.functional.one_hot(quartile, 4).to(values.dtype)
        # where, not a product: a loss that is no number must stay in its own quartile
        sums = torch.where(member > 0, values[:, None], 0.0).sum(0)
        return torch.cat([sums, member.sum(0)])

    def _not_finite(self, measured: Measured, processes: Processes) -> list[int]:
        values = torch.cat([loss.per_image for loss in measured.losses])
        flags = values.new_zeros(self._batch)
        flags[self._first : self._first + len(values)] = (~values.isfinite()).to(values.dtype)
        return processes.total(flags).nonzero()[:, 0].tolist()

    def means(self) -> dict[str, Any]:
        """Means over the rows, null where there are none; the rows are then forgotten."""
        rows, self.rows = self.rows, []
        sums, counts = ([sum(row[part][quartile] for row in rows) for quartile in range(4)] for part in (0, 1))
        by_noise = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
        norm = sum(row.grad_norm for row in rows) / len(rows) if rows else None
        return {"loss": sum(sums) / sum(counts) if rows else None, "loss_by_noise": by_noise, "grad_norm": norm}


class JsonLines:
    """A file of lines of JSON, each with the `images` it was written at. Lines beyond `images` are cut off at the start:
    they belong to a past that is done again. Only the main process `writes`; `lines` are all that were not cut off,
    `reached` is the last one's `images` before that.
    """

    def __init__(self, path: Path, images: int, writes: bool) -> None:
        self.path, self._writes = path, writes
        found = read_lines(path)
        self.lines = [line for line in found if line["images"] <= images]
        self.reached: int = max((line["images"] for line in found), default=0)
        if writes and path.exists():
            with atomic(path) as temporary:
                temporary.write_text("".join(map(_dumps, self.lines)), encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        """Flushed to disk: a checkpoint that comes after it must not outlive it. A number that is not finite becomes null.

        Raises: UserError if the disk is full.
        """
        line = _finite(line)
        self.lines.append(line)
        if not self._writes:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_dumps(line))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); make room and run again") from error

    def newest(self, key: str) -> dict[str, Any]:
        """The newest line that has a key; empty before the first."""
        return next((line for line in reversed(self.lines) if key in line), {})


def _finite(value: Any) -> Any:
    """JSON knows no infinity and no NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _dumps(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines up to the first that was not written whole; none if there is no file."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
