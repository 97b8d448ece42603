"""The comparison of the variants: FID over the seeds, and whether each claim of the paper shows at this scale."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

from pipeline.ablation import page
from pipeline.artifacts import read_json, write_json
from pipeline.config.evaluation import Ablation, Claim
from pipeline.errors import UserError

CONFIDENCE = 0.95
SCORES = ("fid", "kid", "clip_score")
SAME = ("images", "px", "ids_sha256", "captions_sha256", "feature_network", "resize", "sampler")  # or FIDs do not compare
Record = dict[str, Any]


def run(ablation: Ablation, folder: Path, out: Path) -> None:
    """Write OUT (.json), and beside it a table (.md) and a plot (.png), from FOLDER/{arm}-{seed}/, each with the
    summary of a training and its evaluation/card.json.

    Raises: UserError naming a file that is missing, was trained for another budget, or was evaluated otherwise.
    """
    seeds, budget = ablation.seeds, ablation.training_flops
    trainings = {arm: [_training(folder / f"{arm}-{seed}", budget) for seed in seeds] for arm in ablation.arms}
    first = next(iter(trainings.values()))[0]
    for training in (training for many in trainings.values() for training in many):
        _check_alike(first, training)
    arms = {name: _arm(ablation.arms[name].title, many) for name, many in trainings.items()}
    claims = [_claim(claim, trainings) for claim in ablation.claims]
    result = {
        "training_flops": budget,
        "seeds": seeds,
        "tokens": _tokens(first["summary"]["model"]),
        "arms": arms,
        "claims": claims,
        "evaluation": {name: first["card"][name] for name in SAME},
        **{name: first["summary"][name] for name in ("device", "versions", "git_commit")},
    }
    write_json(out, result)
    page.write_table(out.with_suffix(".md"), result)
    page.write_plot(out.with_suffix(".png"), result)


def _training(folder: Path, budget: float) -> Record:
    summary, card = read_json(folder / "summary.json"), read_json(folder / "evaluation" / "card.json")
    try:
        found = summary["training_flops"]
        batch = found / summary["images_seen"] * summary["config"]["stage"]["batch_images"]
        scores = {name: card["metrics"][name] for name in SCORES}
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: not a training and its evaluation, {error} is missing; delete it and run again") from error
    if not budget - batch < found <= budget:
        raise UserError(
            f"{folder / 'summary.json'}: trained for {found:.4g} FLOPs, ablation.training_flops is {budget:.4g}; train it again"
        )
    return {"folder": folder, "summary": summary, "card": card, **scores}


def _check_alike(a: Record, b: Record) -> None:
    for name in SAME:
        if a["card"].get(name) != b["card"].get(name):
            raise UserError(
                f"{b['folder']}/evaluation/card.json: {name} is not that of {a['folder']}, so their FIDs do not compare; "
                "evaluate both again"
            )


def _tokens(model: Record) -> int:
    return (model["input_size"] // model["patch_size"]) ** 2


def _arm(title: str, trainings: Sequence[Record]) -> Record:
    summary = trainings[0]["summary"]
    return {
        "title": title,
        "mask_ratio": summary["config"]["stage"]["mask_ratio"],
        "mask_mode": summary["model"]["mask_mode"],
        "parameters": summary["parameters"],
        "training_flops_an_image": summary["training_flops"] / summary["images_seen"],
        "images": summary["images_seen"],
        "training_flops": summary["training_flops"],
        "seconds": round(sum(sum(one["summary"]["seconds"].values()) for one in trainings), 1),
        **{name: _spread([one[name] for one in trainings]) for name in SCORES},
    }


def _spread(values: Sequence[float]) -> Record:
    """Mean over the seeds and the standard deviation between them; none for a single one."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "values": list(values)}


def _claim(claim: Claim, trainings: dict[str, list[Record]]) -> Record:
    """How much lower the FID of the better variant is, seed by seed, and whether that is more than chance.

    A paired t-test: the interval holds the mean difference with a probability of 95 %.
    """
    pairs = zip(trainings[claim.better], trainings[claim.worse], strict=True)
    differences = [worse["fid"] - better["fid"] for better, worse in pairs]
    found, margin = mean(differences), interval_margin(differences)
    return {
        **claim.model_dump(),
        "difference": found,
        "interval": None if margin is None else [found - margin, found + margin],
        "verdict": verdict(found, margin),
    }


def interval_margin(differences: Sequence[float]) -> float | None:
    """Half the width of Student's interval around the mean; None for a single difference."""
    if len(differences) < 2:
        return None
    quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
    return quantile * stdev(differences) / math.sqrt(len(differences))


def verdict(difference: float, margin: float | None) -> str:
    """`holds`, `does not hold`, or that the seeds do not decide it."""
    if margin is None:
        return "one seed decides nothing"
    if abs(difference) <= margin:
        return "not decided by these seeds"
    return "holds" if difference > 0 else "does not hold"
