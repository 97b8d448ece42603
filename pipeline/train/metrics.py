"""metrics.jsonl: a line every so many images. Losses stay on the device until a line or a checkpoint needs them."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.artifacts import atomic
from pipeline.diffusion import EDM, Loss
from pipeline.train.processes import Processes

QUARTILES = (-0.6745, 0.0, 0.6745)  # of a standard normal, the distribution of the noise levels' logarithm


class Losses:
    """What was measured in the steps since the last line: a row a step, [4 sums, 4 counts, gradient norm], by quartile
    of the noise level from clean to noisy."""

    def __init__(self, edm: EDM, rows: list[list[float]]) -> None:
        self.rows = rows
        self._edges = torch.tensor([edm.p_std * edge + edm.p_mean for edge in QUARTILES]).exp()
        self._pending: list[tuple[list[Loss], Tensor]] = []

    def add(self, losses: list[Loss], grad_norm: Tensor) -> None:
        """One step: the losses of its microbatches. Costs nothing on the device."""
        self._pending.append((losses, grad_norm))

    def collect(self, processes: Processes) -> list[list[float]]:
        """Read what is pending from the device, summed over the processes; returns the new rows."""
        if not self._pending:
            return []
        rows = torch.stack([self._row(losses, norm.float() / processes.count) for losses, norm in self._pending])
        self._pending = []
        new = processes.total(rows).tolist()
        self.rows += new
        return new

    def _row(self, losses: list[Loss], norm: Tensor) -> Tensor:
        values = torch.cat([loss.per_image for loss in losses]).float()
        quartile = torch.bucketize(torch.cat([loss.sigma for loss in losses]), self._edges.to(values.device))
        member = torch.nn.functional.one_hot(quartile, 4).to(values.dtype)
        # where, not a product: a loss that is no number must stay in its own quartile
        sums = torch.where(member > 0, values[:, None], 0.0).sum(0)
        return torch.cat([sums, member.sum(0), norm[None]])

    def means(self) -> dict[str, Any]:
        """Means over the rows, which are then forgotten."""
        columns = [sum(column) for column in zip(*self.rows, strict=True)]
        sums, counts, norms = columns[:4], columns[4:8], columns[8]
        by_noise = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
        means = {"loss": sum(sums) / sum(counts), "loss_by_noise": by_noise, "grad_norm": norms / len(self.rows)}
        self.rows = []
        return means


class MetricsFile:
    """Lines of JSON, each with the `images` it was written at; lines beyond `images` are cut off at the start. Only the
    main process `writes`."""

    def __init__(self, path: Path, images: int, writes: bool) -> None:
        self.path, self._writes = path, writes
        self.lines = [line for line in _read(path) if line["images"] <= images]
        if writes and path.exists():
            with atomic(path) as temporary:
                temporary.write_text("".join(map(_dumps, self.lines)), encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if not self._writes:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_dumps(line))

    def last(self, key: str) -> float:
        """A value of the last line, 0 before the first."""
        return self.lines[-1][key] if self.lines else 0


def _dumps(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines up to the first that was not written whole."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
