"""The plots of the page: how all stages went, on one axis of images seen."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.report.plots import Curve, plot
from pipeline.report.words import score

NOISE = ("cleanest quarter", "second", "third", "noisiest quarter")
SCORES = {"curve_fid": "FID while training", "curve_clip_score": "CLIP score while training"}


class History(NamedTuple):
    """The metrics of one stage. `start` counts the images that the stages before it saw."""

    stage: str
    start: int
    lines: list[dict[str, Any]]  # of training, validation and scores: a key that is missing or null has no point

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

    def scored(self, curve_id: str) -> list[dict[str, Any]]:
        """Lines with scores that were made in this one way, the newest for each number of images."""
        found = {line["images"]: line for line in self.lines if line.get("curve_id") == curve_id}
        return [found[images] for images in sorted(found) if math.isfinite(found[images]["curve_fid"])]

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


def plots(histories: list[History], spent: list[float], price: float) -> list[Plot]:
    """Scores while training if there are any, over images and over cost; loss, loss on held-out samples if there are any,
    loss by noise level, learning rate and throughput. `spent` are device-hours of every stage, `price` is dollars an hour.
    """
    validated = [history for history in histories if history.curve("validation_loss").x]
    return [
        *_scores(histories, spent, price),
        _plot("Loss", "loss", histories, "Weighted denoising loss. It jumps between stages: a mask makes the task harder, and "
              "each resolution has noise levels of its own.", log=True),
        *([_plot("Loss on held-out samples", "validation_loss", validated, "Of the averaged weights, at fixed noise levels and "
                 "on all tokens.", log=True), _by_sigma(validated)] if validated else []),
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


def _by_sigma(histories: list[History]) -> Plot:
    """Of held-out samples, a curve for each noise level at which they are measured."""
    found: dict[str, list[tuple[int, float]]] = {}
    for history in histories:
        for line in history.lines:
            for sigma, loss in (line.get("validation_by_sigma") or {}).items():
                found.setdefault(sigma, []).append((history.start + line["images"], loss))
    curves = [Curve(f"noise {sigma}", *zip(*found[sigma], strict=True)) for sigma in sorted(found, key=float)]
    return Plot(
        "Held-out loss by noise level",
        plot("sigma", curves, "Loss on held-out samples over images seen, at each noise level", log=True),
        "The noise is the standard deviation that is added; an image's own is near 1.",
    )


def _scores(histories: list[History], spent: list[float], price: float) -> list[Plot]:
    """FID and CLIP score of the averaged weights. Points that were scored in another way than the newest are left out."""
    newest = next((line["curve_id"] for h in reversed(histories) for line in reversed(h.lines) if line.get("curve_id")), None)
    if newest is None:
        return []
    before = [sum(spent[:place]) for place in range(len(histories))]
    lines = [[_point(history, line, hours, price) for line in history.scored(newest)]
             for history, hours in zip(histories, before, strict=True)]  # fmt: skip
    best = min((line for stage in lines for line in stage), key=lambda line: line["curve_fid"], default=None)
    if best is None:
        return []
    axes = {"images": "images seen", "cost": "dollars, training alone" if price else "device-hours of training"}
    return [_score_plot(key, x, label, histories, lines, best) for x, label in axes.items() for key in SCORES]


def _point(history: History, line: dict[str, Any], hours: float, price: float) -> dict[str, Any]:
    """A scored line, its images and its cost counted from the first stage on."""
    return {**line, "images": history.start + line["images"], "cost": (hours + line["device_hours"]) * (price or 1)}


def _score_plot(
    key: str, x: str, label: str, histories: list[History], lines: list[list[dict[str, Any]]], best: dict[str, Any]
) -> Plot:
    title = SCORES[key] if x == "images" else f"{SCORES[key].split(' while')[0]} by cost"
    curves = [
        Curve(history.stage, [line[x] for line in stage], [line[key] for line in stage])
        for history, stage in zip(histories, lines, strict=True)
        if stage
    ]
    told = f"best FID {score(best['curve_fid'])}, with CLIP score {score(best['curve_clip_score'])}"
    svg = plot(
        f"{key}-{x}", curves, f"{title} over {label}; {told}",
        log=key == "curve_fid", x=label, dots=True, from_zero=False, mark=(best[x], best[key]),
    )  # fmt: skip
    caption = f"Of the averaged weights, {best['curve_images']} images a point; ★ {told}."
    return Plot(title, svg, caption)
