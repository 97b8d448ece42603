"""Handing over a finished stage."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import atomic, write_json
from pipeline.train.checkpoint import remove_leftovers
from pipeline.train.summary import summary

if TYPE_CHECKING:
    from pipeline.train.stage import Training

WEIGHTS = ("model", "ema", "optimizer")
BEST = "best.safetensors"  # where there are scores


def publish(training: "Training", out: Path) -> None:
    """Write OUT from the last checkpoint; the summary comes last, so that one that is there is true."""
    remove_leftovers(out)
    (out / "summary.json").unlink(missing_ok=True)
    last = training.checkpoints.path(training.state.images)
    for name in WEIGHTS:
        _hand_over(last / f"{name}.safetensors", out / f"{name}.safetensors")
    (out / BEST).unlink(missing_ok=True)  # of a run before, as nothing else removes it
    if best := training.best.point():
        _hand_over(training.best.file(best["images"]), out / BEST)
    _hand_over(training.metrics.path, out / "metrics.jsonl")
    _hand_over(training.grid_file(), out / "samples.png")
    write_json(out / "summary.json", summary(training))


def _hand_over(file: Path, to: Path) -> None:
    """The same file under a second name, or a copy on another file system. Neither is ever written to again."""
    with atomic(to) as temporary:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)
