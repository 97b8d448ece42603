"""The plots of the page: how all stages went, on one axis of images seen."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.report.plots import Curve, plot
from pipeline.report.words import score

NOISE = ("cleanest quarter", "second", "third", "noisiest quarter")


class History(NamedTuple):
    """The metrics of one stage. `start` counts the images that the stages before it saw."""

    stage: str
    start: int
    lines: list[dict[str, Any]]  # of training and of validation: a key that is missing or null has no point

    @classmethod
    def read(cls, folder: Path, summary: dict[str, Any]) -> "History":
        """Raises: UserError if metrics.jsonl is missing or is none."""
        file = folder / "metrics.jsonl"
        try:
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            history = cls(summary["stage"], summary["images_seen_total"] - summary["images_seen"], lines)
            assert history.curve("loss").x and history.curve("learning_rate").x
            return history
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(f"{file}: not the metrics of a stage ({error}); train that stage again") from error

    def curve(self, key: str) -> Curve:
        return Curve(self.stage, *self.points(key))

    def points(self, key: str, place: int | None = None) -> tuple[list[int], list[float]]:
        """Images seen since the first stage, and the values of a key, or those at a place of its list."""
        values = [(line["images"], line.get(key)) for line in self.lines]
        if place is not None:
            values = [(images, value and value[place]) for images, value in values]
        known = [(self.start + images, value) for images, value in values if value is not None]
        return [images for images, _ in known], [value for _, value in known]


class Plot(NamedTuple):
    """A heading, the <svg>, and what is to be seen."""

    title: str
    svg: str
    caption: str


def plots(histories: list[History]) -> list[Plot]:
    """Loss, loss on held-out samples if there are any, loss by noise level, learning rate and throughput."""
    validated = [history for history in histories if history.curve("validation_loss").x]
    return [
        _plot("Loss", "loss", histories, "Weighted denoising loss. It jumps between stages: a mask makes the task harder, and "
              "each resolution has noise levels of its own.", log=True),
        *([_plot("Loss on held-out samples", "validation_loss", validated, "Of the averaged weights, at fixed noise levels and "
                 "on all tokens.", log=True)] if validated else []),
        _by_noise(histories),
        _plot("Learning rate", "learning_rate", histories, "Of AdamW, at the end of each interval."),
        _plot("Throughput", "images_per_second", histories, "Images a second in training. A mask spares the backbone most of "
              "its tokens; a higher resolution brings more of them."),
    ]  # fmt: skip


def _plot(title: str, key: str, histories: list[History], caption: str, log: bool = False) -> Plot:
    curves = [history.curve(key) for history in histories]
    ends = f"{title} over images seen, from {score(curves[0].y[0])} to {score(curves[-1].y[-1])}"
    return Plot(title, plot(key, curves, ends, log=log), caption)


def _by_noise(histories: list[History]) -> Plot:
    curves = []
    for place, name in enumerate(NOISE):
        points = [history.points("loss_by_noise", place) for history in histories]
        curves.append(Curve(name, *([value for values in side for value in values] for side in zip(*points, strict=True))))
    caption = "The same loss apart by noise level: what is drawn from almost nothing, and what is only cleaned up."
    return Plot(
        "Loss by noise level",
        plot("noise", curves, "Loss over images seen for four ranges of noise", log=True),
        caption,
    )
