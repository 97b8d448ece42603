"""Sections that are on the page where the configuration asks for what they show: GenEval, guidance sweep, ablation."""

from pathlib import Path
from typing import Any

from pipeline.artifacts import read_json
from pipeline.errors import UserError
from pipeline.report.pictures import listed_pictures, picture
from pipeline.report.plots import Curve, plot
from pipeline.report.words import score

View = dict[str, Any]


def geneval(file: Path, card: View) -> View | None:
    """Score, tasks, self-test and failures of the stage's GenEval, None if the card has none.

    Raises: UserError if the file is missing or is no such result.
    """
    if card.get("geneval") is None:
        return None
    result = read_json(file)
    try:
        tasks = [
            (name.replace("_", " "), row["accuracy"], row["images"], row["prompts"]) for name, row in result["tasks"].items()
        ]
        failures = listed_pictures(file, ("image",), ("task", "prompt", "reason"), result["failures"])
        return {
            "score": result["score"],
            "tasks": tasks,
            "images": result["images"],
            "prompts": result["prompts"],
            "detector": _named(result["detector"]),
            "clip": result["clip"] and _named(result["clip"]),
            "self_test": {name: result["self_test"][name] for name in ("source", "images", "recall", "colour_accuracy")},
            "failures": failures,
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not a result of GenEval, {error} is missing; delete it and evaluate again") from error


def _named(identity: Any) -> str:
    return str(identity.get("ref") or identity.get("name") or identity) if isinstance(identity, dict) else str(identity)


def preferences(card: View) -> list[tuple[str, str, str, int]]:
    """Name, mean and its standard error, images."""
    found = card.get("preference") or {}
    return [
        (name, score(row["mean"]), f"± {score(row['std_error'])}" if row["std_error"] is not None else "", row["images"])
        for name, row in found.items()
    ]


def guidance(file: Path | None) -> View | None:
    """The scores at every guidance scale, and plots of them. Raises: UserError if the file is no sweep."""
    if file is None:
        return None
    result = read_json(file)
    try:
        points, best = result["points"], result["best"]
        scales = [point["guidance"] for point in points]
        plots = [
            _over_guidance(name, key, scales, [point[key] for point in points], best)
            for key, name in (("fid", "FID"), ("clip_score", "CLIP score"))
        ]
        return {"points": points, "best": best, "plots": plots, "images": result["images"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: not a guidance sweep, {error} is missing; delete it and run again") from error


def _over_guidance(name: str, key: str, scales: list[float], values: list[float], best: float) -> tuple[str, str]:
    alt = f"{name} over guidance scales, {score(values[0])} at {scales[0]:g}, {score(values[-1])} at {scales[-1]:g}"
    mark = (best, values[scales.index(best)])
    curve = Curve(name, scales, values)
    return name, plot(
        f"guidance-{key}", [curve], alt, log=key == "fid", x="guidance scale", dots=True, from_zero=False, mark=mark
    )


def ablation(file: Path | None) -> View | None:
    """Variants, the paper's claims and the plot beside the file. Raises: UserError if the file is no ablation."""
    if file is None:
        return None
    result = read_json(file)
    try:
        arms = [{**arm, **{name: _spread(arm[name]) for name in ("fid", "clip_score")}} for arm in result["arms"].values()]
        titles = {name: arm["title"] for name, arm in result["arms"].items()}
        claims = [
            {**claim, **{side: titles[claim[side]] for side in ("better", "worse")}, "interval": _interval(claim["interval"])}
            for claim in result["claims"]
        ]
        facts = {name: result[name] for name in ("training_flops", "seeds", "device")}
        return {"arms": arms, "claims": claims, **facts, "plot": picture(file.with_suffix(".png"))}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not an ablation, {error} is missing; delete it and run again") from error


def _spread(values: View) -> str:
    return score(values["mean"]) + (f" ± {score(values['std'])}" if values["std"] is not None else "")


def _interval(ends: list[float] | None) -> str:
    return f"{score(ends[0])} to {score(ends[1])}" if ends else "–"
