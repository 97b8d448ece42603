"""The best point of a stage's curve, by FID, and the averaged weights there.

They lie beside the checkpoints, as best/{images}.safetensors. A run that goes on from a checkpoint keeps only what
metrics.jsonl says up to there, so that for every checkpoint the best point up to it is kept.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.artifacts import atomic, check_room
from pipeline.train.checkpoint import Tensors, save_tensors

POINT = ("images", "curve_fid", "curve_clip_score", "curve_images")


class Best:
    """The best of the points in `lines`, those of metrics.jsonl, which grow."""

    def __init__(self, folder: Path, lines: list[dict[str, Any]]) -> None:
        self._folder, self._lines = folder, lines

    def point(self, until: float = math.inf) -> dict[str, Any] | None:
        """`images` and scores of the best point up to so many images; None before the first."""
        best = _best([line for line in self._lines if line["images"] <= until])
        return best and {name: best[name] for name in POINT}

    def file(self, images: int) -> Path:
        return self._folder / f"{images:012d}.safetensors"

    def keep(self, line: dict[str, Any], average: Tensors) -> None:
        """Write the weights of a point that comes next, if it is the best so far. Raises: UserError if the disk is full."""
        if _best([*self._lines, line]) is not line:
            return
        file = self.file(line["images"])
        self._folder.mkdir(exist_ok=True)
        check_room(file, sum(tensor.nbytes for tensor in average.values()))
        with atomic(file) as temporary:
            save_tensors(average, temporary)

    def prune(self, checkpoints: Iterable[int]) -> None:
        """Drop all but the best point and the best up to each of the checkpoints."""
        points = [self.point(), *map(self.point, checkpoints)]
        needed = {self.file(point["images"]) for point in points if point}
        for file in set(self._folder.glob("*.safetensors")) - needed:
            file.unlink()


def _best(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The line of the lowest FID; those that were scored in another way than the newest do not count."""
    scored = [line for line in lines if line.get("curve_fid") is not None and math.isfinite(line["curve_fid"])]
    alike = [line for line in scored if line["curve_id"] == scored[-1]["curve_id"]]
    return min(alike, key=lambda line: line["curve_fid"], default=None)
