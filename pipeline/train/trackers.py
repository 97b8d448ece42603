"""Metrics and sample grids to TensorBoard, Weights & Biases or Trackio, beside metrics.jsonl, through accelerate's trackers.

All count in images. A run that is resumed goes on in place: TensorBoard hides what lies beyond the resumed point, the
other two cannot forget, so they are not told again what they were told before.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image

from pipeline.config.steps import Settings
from pipeline.errors import UserError

COUNTERS = ("images", "step")  # the first is the axis, the second follows from it


class Trackers:
    """Those that `runtime.trackers` names. `run` is the run's name, `run_id` tells it from others of that name.

    `images` is where the run goes on, `reached` how far metrics.jsonl had come before. One that fails later is left out,
    with a line on stderr: no training is lost for it.
    Raises: UserError if one cannot be started.
    """

    def __init__(
        self, settings: Settings, run: str, run_id: str, folder: Path, config: dict[str, Any], images: int, reached: int
    ) -> None:
        self._reached = reached
        self._trackers: list[GeneralTracker] = []
        for name in settings.runtime.trackers:
            try:
                tracker = _make(name, settings.runtime.tracker_project, run, run_id, folder, images)
                tracker.start()
                if not (name == "tensorboard" and images):  # there each would stand as a run of its own
                    tracker.store_init_configuration(flat(config))
            except Exception as error:  # each has errors of its own: no network, no key, not installed
                raise UserError(f"runtime.trackers: {name} cannot be started ({error}); log in, or leave it out") from error
            self._trackers.append(tracker)

    def log(self, line: dict[str, Any]) -> None:
        """The finite numbers of a line of metrics.jsonl."""
        numbers = {key: value for key, value in flat(line).items() if key not in COUNTERS and _is_finite(value)}
        self._tell(line["images"], lambda tracker: tracker.log(numbers, step=line["images"]))

    def log_grid(self, file: Path, images: int) -> None:
        """A sample grid."""
        self._tell(images, lambda tracker: _log_picture(tracker, file, images))

    def finish(self) -> None:
        for tracker in list(self._trackers):
            self._try(tracker, lambda tracker: tracker.finish())

    def _tell(self, images: int, what: Callable[[GeneralTracker], None]) -> None:
        for tracker in list(self._trackers):
            if tracker.name == "tensorboard" or images >= self._reached:
                self._try(tracker, what)

    def _try(self, tracker: GeneralTracker, what: Callable[[GeneralTracker], None]) -> None:
        try:
            what(tracker)
        except Exception as error:  # a server or a process of theirs that is gone
            print(f"runtime.trackers: {tracker.name} failed ({error}) and is left out from now on", file=sys.stderr, flush=True)
            self._trackers.remove(tracker)


def _make(name: str, project: str, run: str, run_id: str, folder: Path, images: int) -> GeneralTracker:
    """The tracker of that name, not started yet."""
    if name == "tensorboard":
        return TensorBoardTracker(run, folder / "tensorboard", purge_step=images + 1)
    if name == "wandb":
        import wandb

        unasked = wandb.Settings(save_code=False, disable_git=True, console="off")  # a remote's address may hold a password
        return WandBTracker(project, name=run, id=run_id, resume="allow", dir=str(folder), settings=unasked)
    return TrackioTracker(project, name=f"{run}-{run_id[:8]}", resume="allow")  # it knows a run by its name


def _log_picture(tracker: GeneralTracker, file: Path, images: int) -> None:
    if tracker.name == "trackio":
        import trackio

        tracker.log({"samples": trackio.Image(str(file))}, step=images)
        return
    with Image.open(file) as image:
        if tracker.name == "wandb":
            tracker.log_images({"samples": [image]}, step=images)
        else:
            tracker.log_images({"samples": np.asarray(image)[None]}, step=images, dataformats="NHWC")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables and lists as one table, keys joined by slashes; what is no number, truth value or text as text."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, list | tuple):
            found |= flat(dict(enumerate(value)), f"{prefix}{key}/")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
