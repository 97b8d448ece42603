"""The report of a run as one HTML page that asks no server for anything.

Captions, titles and names come from outside: the template escapes them, and pictures come in as data URIs only.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from pipeline.artifacts import atomic, read_json
from pipeline.config.steps import Settings
from pipeline.errors import UserError
from pipeline.report import counts, curves, scales, words

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_PAIRS = 12  # the other pairs of the gallery are folded away
SHOWN_PROCESSES = 60
GRID_PX = 1024  # wider sample grids are made smaller
PICTURE = "data:image/png;base64,"
View = dict[str, Any]


def run(settings: Settings, card: Path, manifests: list[Path], stages: list[Path], evaluation: Path, out: Path) -> None:
    """Write the page from the run's card, the manifests and summaries of its stages in the order of the schedule, each
    summary beside metrics.jsonl and samples.png, and the folder of the evaluation with its gallery.json.

    Raises: UserError naming the file that is missing or is not what it should be.
    """
    facts = scales.check_card(card, read_json(card))
    summaries = [_summary(file) for file in stages]
    tables = [counts.read(file) for file in manifests]
    view = {
        "title": settings.report.title,
        "css": (TEMPLATES / "page.css").read_text(encoding="utf-8"),
        "card_path": str(card),
        **_head(facts, summaries, tables),
        "gallery": _gallery(evaluation / "gallery.json"),
        "shown_pairs": SHOWN_PAIRS,
        "scores": scales.scores(facts),
        "accuracies": scales.accuracies(facts),
        "attributes": scales.ATTRIBUTES,
        "plots": curves.plots([curves.History.read(file.parent, s) for file, s in zip(stages, summaries, strict=True)]),
        "sample_prompts": settings.runtime.sample_prompts,
        "grids": [_grid(file.parent / "samples.png", summary) for file, summary in zip(stages, summaries, strict=True)],
        "data": counts.account(tables),
        **_cost(facts),
        "facts": _facts(facts),
        "listings": _listings(facts, summaries),
    }
    with atomic(out) as temporary:
        temporary.write_text(_render(view), encoding="utf-8")


def _render(view: View) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": words.score,
        "percent": words.percent,
        "count": words.count,
        "duration": words.duration,
    }
    return environment.get_template("page.html").render(view)


def _summary(file: Path) -> View:
    summary = read_json(file)
    missing = {"stage", "config", "images_seen", "images_seen_total", "parameters", "model"} - set(summary)
    if missing:
        raise UserError(f"{file}: not a stage's summary, it lacks {words.listed(sorted(missing))}; train that stage again")
    return summary


def _head(card: View, summaries: list[View], tables: list[View]) -> View:
    """What a newcomer reads first, and the numbers in large."""
    accuracy = scales.prompt_accuracy(card)
    return {
        "run": {
            "parameters": words.count(summaries[-1]["parameters"]),
            "px": card["px"],
            "stages": len(summaries),
            "images_seen": words.count(summaries[-1]["images_seen_total"]),
            "images": words.count(max(counts.trained(table) for table in tables)),
            "sources": words.listed(sorted({source for table in tables for source in table["counts"]})),
            "evaluated": f"{card['images']:,}",
            "device": words.listed(sorted({stage["device"] for stage in card["stages"]})),
        },
        "card": card,
        "prompt_accuracy": accuracy,
        "tiles": _tiles(card, summaries, accuracy),
    }


def _tiles(card: View, summaries: list[View], accuracy: float | None) -> list[tuple[str, str, str]]:
    """Label, value, and what to compare it with."""
    floor, ceiling = (card["scale"][end] for end in ("floor", "ceiling"))
    ends = [f"real images {words.score(floor['fid'])}"] + ([f"untrained {words.score(ceiling['fid'])}"] if ceiling else [])
    tiles = [
        ("FID", words.score(card["fid"]), ", ".join(ends)),
        ("CLIP score", words.score(card["clip_score"]), f"real images {words.score(card['clip_score_real'])}"),
    ]
    if accuracy is not None:
        tiles.append(("Prompt followed", words.percent(accuracy), "colour, shape, position, background of one object"))
    tiles.append(("Training", words.duration(card["cost"]["seconds"]), _price(card["cost"])))
    tiles.append(("Images seen", words.count(summaries[-1]["images_seen_total"]), f"in {len(summaries)} stages"))
    return tiles


def _price(cost: View) -> str:
    if not cost["dollars_per_hour"]:
        return "no price set"
    return f"{words.dollars(cost['dollars'])} at {words.dollars(cost['dollars_per_hour'])} a device-hour"


def _gallery(file: Path) -> list[View]:
    pairs = read_json(file)
    for pair in pairs:
        for side in ("generated", "real"):
            if not pair[side].startswith(PICTURE):
                raise UserError(f"{file}: {side} of {pair['key']} is no PNG in a data URI; delete it and evaluate again")
    return pairs


def _grid(file: Path, summary: View) -> View:
    try:
        with Image.open(file) as image:
            image.thumbnail((GRID_PX, GRID_PX))
            content = io.BytesIO()
            image.save(content, format="png")
    except OSError as error:
        raise UserError(f"{file}: not a readable picture ({error}); train that stage again") from error
    stage = summary["config"]["stage"]
    return {
        "stage": summary["stage"],
        "uri": PICTURE + base64.b64encode(content.getvalue()).decode(),
        "px": stage["px"],
        "mask_ratio": stage["mask_ratio"],
        "images": words.count(summary["images_seen_total"]),
    }


def _cost(card: View) -> View:
    cost = card["cost"]
    slowest = sorted(card["processes"], key=lambda process: -process["seconds"])[:SHOWN_PROCESSES]
    return {
        "cost": {
            **cost,
            "price": _price(cost),
            "dollars": words.dollars(cost["dollars"]) if cost["dollars_per_hour"] else "–",
        },
        "plan": _plan(card),
        "stage_costs": [_stage_cost(stage, cost) for stage in card["stages"]],
        "skipped_steps": sum(stage["skipped_steps"] or 0 for stage in card["stages"]),
        "slowest": slowest,
    }


def _stage_cost(stage: View, cost: View) -> View:
    share, plan = stage["share_of_peak"], stage["plan"]
    return {
        **stage,
        "dollars": words.dollars(stage["dollars"]) if cost["dollars_per_hour"] else "–",
        "share_of_peak": "–" if share is None else words.percent(share),
        "planned_hours": f"{plan['device_hours']:.3g}" if plan else "–",
    }


def _plan(card: View) -> str:
    """What training was planned to take, empty where a stage has no plan."""
    cost = card["cost"]
    if cost["planned_device_hours"] is None:
        return ""
    shares = sorted({words.percent(stage["plan"]["share_of_peak"]) for stage in card["stages"]})
    price = f", {words.dollars(cost['planned_dollars'])}" if cost["dollars_per_hour"] else ""
    return f"{cost['planned_device_hours']:.3g} device-hours{price}, at {words.listed(shares)} of the device's peak"


def _facts(card: View) -> list[tuple[str, str]]:
    """What one must know to get the same numbers again."""
    network, sampler, weights = card["feature_network"], card["sampler"], card["weights"]
    return [
        ("weights", f"{weights['file']}, averaged over training" if weights["ema"] else weights["file"]),
        ("sha256 of the weights", weights["sha256"]),
        ("fingerprint of the last stage", weights["fingerprint"]),
        (
            "sampler",
            f"{sampler['name']}, {sampler['steps']} steps, guidance {sampler['guidance']}, seed {sampler['seed']}",
        ),
        (
            "noise levels",
            f"{sampler['sigma_max']} to {sampler['sigma_min']}, rho {sampler['rho']}, data {sampler['sigma_data']}",
        ),
        ("feature network", f"{network['name']}, {network['width']} features, {network['identity']}"),
        ("resizing", f"{card['resize']} to {network['input_px']} px; images as {card['image_format']}"),
        ("real images", card["reference_preparation"]),
        ("sha256 of the evaluated ids", card["ids_sha256"]),
        ("fingerprint of the evaluation", card["config_fingerprint"]),
        ("git commit", str(card["git_commit"] or "no checkout")),
        ("device of the evaluation", card["device"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in card["versions"].items())),
    ]


def _listings(card: View, summaries: list[View]) -> list[tuple[str, str]]:
    stages = [(f"configuration of stage {summary['stage']}", summary["config"]) for summary in summaries]
    evaluation = {key: value for key, value in card.items() if not key.startswith("processes")}
    chosen = [("architecture of the last stage", summaries[-1]["model"]), *stages, ("evaluation card", evaluation)]
    return [(name, json.dumps(value, indent=2, ensure_ascii=False)) for name, value in chosen]
