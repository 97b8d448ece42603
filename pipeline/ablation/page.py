"""The comparison for people: a table in Markdown and a plot."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from pipeline.artifacts import atomic

Record = dict[str, Any]
INK, DOT, BAR = "#333333", "#0b6e99", "#c8d9e2"


def write_table(file: Path, result: Record) -> None:
    """Variants and claims as Markdown."""
    with atomic(file) as temporary:
        temporary.write_text("\n".join([*_arms(result), "", *_claims(result)]) + "\n", encoding="utf-8")


def _arms(result: Record) -> list[str]:
    seeds = len(result["seeds"])
    head = f"FID ± standard deviation over {seeds} seed{'s' * (seeds > 1)}"
    lines = [
        f"Each variant was trained for {result['training_flops']:.3g} FLOPs at {result['tokens']} tokens an image.",
        "",
        f"| variant | {head} | KID | CLIP score | parameters | MFLOP an image | images seen |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in result["arms"].values():
        numbers = [f"{arm['parameters'] / 1e6:.2f}M", f"{arm['training_flops_an_image'] / 1e6:.0f}", f"{arm['images']:,}"]
        scores = [_score(arm["fid"], 2), _score(arm["kid"], 2), _score(arm["clip_score"], 2)]
        lines.append("| " + " | ".join([arm["title"], *scores, *numbers]) + " |")
    return lines


def _score(score: Record, digits: int) -> str:
    spread = "" if score["std"] is None else f" ± {score['std']:.{digits}f}"
    return f"{score['mean']:.{digits}f}{spread}"


def _claims(result: Record) -> list[str]:
    lines = [
        "| the paper: lower FID | than | measured there | FID lower here by, with its 95 % interval | verdict |",
        "|---|---|---|---|---|",
    ]
    for claim in result["claims"]:
        titles = [result["arms"][claim[side]]["title"] for side in ("better", "worse")]
        bounds = "" if claim["interval"] is None else f" ({claim['interval'][0]:.2f} to {claim['interval'][1]:.2f})"
        lines.append("| " + " | ".join([*titles, claim["paper"], f"{claim['difference']:.2f}{bounds}", claim["verdict"]]) + " |")
    return lines


def write_plot(file: Path, result: Record) -> None:
    """A line a variant: the FID of every seed as a dot, their mean as a bar."""
    arms = list(result["arms"].values())
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.5 * len(arms)), layout="constrained")
    for place, arm in enumerate(arms):
        axes.barh(place, arm["fid"]["mean"], height=0.55, color=BAR)
        axes.scatter(arm["fid"]["values"], [place] * len(arm["fid"]["values"]), s=28, color=DOT, zorder=3)
    axes.set_yticks(range(len(arms)), [arm["title"] for arm in arms], color=INK)
    axes.invert_yaxis()
    axes.set_xlabel("FID, lower is better; dots are seeds, bars their means", color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    with atomic(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    plt.close(figure)
