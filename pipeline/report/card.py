"""The evaluation card of a run: the scores, what made them, and seconds and cost of every stage and process."""

from pathlib import Path
from typing import Any

from pipeline.artifacts import read_json, write_json
from pipeline.config.steps import Settings
from pipeline.errors import UserError

Record = dict[str, Any]


def run(settings: Settings, evaluation: Path, stages: list[Path], records: Path, out: Path) -> None:
    """Write `out` from the card of the evaluated stage, the summaries of all stages in the order of the schedule, and
    the folder of process records.

    Raises: UserError naming the file that is missing or is no such card, summary or record.
    """
    scores = _scores(evaluation)
    trained = [_stage(file, settings) for file in stages]
    processes = _processes(records)
    totals = {
        "stages": trained,
        "cost": _cost(trained, settings),
        "processes": processes,
        "processes_by_step": _by_step(processes),
        "processes_with_torch": sum("torch" in process["imports"] for process in processes),
    }
    write_json(out, {**scores, **totals})


def _scores(file: Path) -> Record:
    """The evaluation card, its metrics and the ends of the FID's scale on top."""
    card = read_json(file)
    try:
        metrics, scale = card.pop("metrics"), card["scale"]
        ends = {name: scale[name]["fid"] if scale[name] else None for name in ("floor", "ceiling")}
        return {
            "fid": metrics["fid"],
            "kid": metrics["kid"],
            "clip_score": metrics["clip_score"],
            **metrics,
            **ends,
            **card,
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not the card of an evaluation, {error} is missing; delete it and run again") from error


def _stage(file: Path, settings: Settings) -> Record:
    summary = read_json(file)
    try:
        hours, plan = summary["device_hours"], summary.get("plan")  # stages of older programs have none
        return {
            "name": summary["stage"],
            "px": summary["config"]["stage"]["px"],
            "mask_ratio": summary["config"]["stage"]["mask_ratio"],
            "images": summary["images_seen"],
            "seconds": round(sum(summary["seconds"].values()), 1),
            "images_per_second": summary["images_per_second"],
            "device": settings.report.device_name or summary["device"],
            "processes": summary["processes"],
            "device_hours": hours,
            "dollars": round(hours * settings.report.dollars_per_hour, 6),
            "training_flops": summary["training_flops"],
            "share_of_peak": summary.get("share_of_peak"),
            "plan": plan and {name: plan[name] for name in ("share_of_peak", "device_hours")},
            "skipped_steps": summary.get("skipped_steps"),
            "best": summary.get("best"),
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: not a stage's summary, {error} is missing; train that stage again") from error


def _cost(stages: list[Record], settings: Settings) -> Record:
    """Of training, and what was planned, null unless every stage had a plan. What the other steps took stands with the
    processes."""
    plans = [stage["plan"] for stage in stages]
    planned = round(sum(plan["device_hours"] for plan in plans), 6) if all(plans) else None
    return {
        "seconds": round(sum(stage["seconds"] for stage in stages), 1),
        "device_hours": round(sum(stage["device_hours"] for stage in stages), 6),
        "dollars": round(sum(stage["dollars"] for stage in stages), 6),
        "dollars_per_hour": settings.report.dollars_per_hour,
        "planned_device_hours": planned,
        "planned_dollars": None if planned is None else round(planned * settings.report.dollars_per_hour, 6),
    }


def _processes(folder: Path) -> list[Record]:
    """In the order they started. Each is the last process that did its part: one that failed left no record."""
    found = [(file, read_json(file)) for file in sorted(folder.glob("*.json"))]
    try:
        found.sort(key=lambda pair: pair[1]["started"])
        names = ("step", "name", "seconds", "peak_memory_mb", "imports")
        return [{name: record[name] for name in names} for _, record in found]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: holds a file that is no record of a process ({error}); delete the folder's files") from error


def _by_step(processes: list[Record]) -> dict[str, Record]:
    steps = dict.fromkeys(process["step"] for process in processes)
    return {step: _total([process for process in processes if process["step"] == step]) for step in steps}


def _total(processes: list[Record]) -> Record:
    return {
        "processes": len(processes),
        "seconds": round(sum(process["seconds"] for process in processes), 2),
        "peak_memory_mb": max(process["peak_memory_mb"] for process in processes),
        "with_torch": sum("torch" in process["imports"] for process in processes),
    }
