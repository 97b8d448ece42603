"""The scores of one stage by guidance scale: more guidance follows the prompt better and, past some scale, looks less like
the real images."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from pipeline.artifacts import atomic, read_json, write_json
from pipeline.errors import UserError

Record = dict[str, Any]
INK, LINE, BEST = "#333333", "#0b6e99", "#c2410c"


def run(stage: str, cards: list[Path], out: Path) -> None:
    """Write `out` and, beside it, a plot: the scores of every card, by its guidance scale, and the scale of the lowest FID.

    Raises: UserError if a file is no evaluation card, or the cards differ in more than their guidance.
    """
    found = [(file, read_json(file)) for file in cards]
    try:
        points = sorted((_point(card) for _, card in found), key=lambda point: point["guidance"])
        rest = [(file, _all_but_guidance(card)) for file, card in found]
        best = min(points, key=lambda point: point["fid"])
        labels = {"fid": f"FID ({found[0][1]['feature_network']['name']})", "clip_score": "CLIP score"}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"guidance: a file is not the card of an evaluation, {error} is missing; delete it and run again"
        ) from error
    for file, facts in rest:
        for key, value in facts.items():
            if value != rest[0][1][key]:
                raise UserError(f"{file}: {key} is not that of {rest[0][0]}; compare scales that differ in nothing else")
    write_json(out, {"stage": stage, "points": points, "best": best["guidance"], "by": "fid", **rest[0][1]})
    _plot(out.with_suffix(".png"), points, best, labels, rest[0][1]["images"])


def _point(card: Record) -> Record:
    """The scale and every score that is a number."""
    scores = {name: value for name, value in card["metrics"].items() if isinstance(value, int | float)}
    return {"guidance": card["sampler"]["guidance"], "fid": scores.pop("fid"), "clip_score": scores["clip_score"], **scores}


def _all_but_guidance(card: Record) -> Record:
    sampler = {key: value for key, value in card["sampler"].items() if key != "guidance"}
    kept = {key: card[key] for key in ("images", "ids_sha256", "feature_network", "clip_score_model", "resize")}
    return {"weights": card["weights"]["sha256"], **kept, "sampler": sampler}


def _plot(file: Path, points: list[Record], best: Record, labels: dict[str, str], images: int) -> None:
    """FID against CLIP score, a dot a scale."""
    figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    axes.plot([p["clip_score"] for p in points], [p["fid"] for p in points], color=LINE, linewidth=1, alpha=0.6)
    for point in points:
        place = (point["clip_score"], point["fid"])
        axes.scatter(*place, s=36, color=BEST if point is best else LINE, zorder=3)
        axes.annotate(f"{point['guidance']:g}", place, xytext=(6, 5), textcoords="offset points", color=INK)
    axes.set_xlabel(f"{labels['clip_score']} (higher is better)", color=INK)
    axes.set_ylabel(f"{labels['fid']} (lower is better)", color=INK)
    axes.set_title(f"Guidance scales, {images:,} images each; lowest FID at {best['guidance']:g}", color=INK, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.1)
    with atomic(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    plt.close(figure)
