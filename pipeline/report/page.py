"""The report of a run as one HTML page that asks no server for anything.

Captions, titles and names come from outside: the template escapes them, and pictures come in as data URIs only.
"""

from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.artifacts import atomic, read_json
from pipeline.config.steps import Settings
from pipeline.errors import UserError
from pipeline.report import cost, counts, curves, earlier, environment, extras, pictures, scales, words

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_PAIRS = 12  # the other pairs of the gallery are folded away
PAIR, CAPTION = ("generated", "real"), ("caption", "key")
View = dict[str, Any]


class Further(NamedTuple):
    """What not every run has: Snakemake's folder of benchmarks, guidance.json, ablation.json with its plot beside it, the plan
    that the run was started with."""

    benchmarks: Path | None = None
    guidance: Path | None = None
    ablation: Path | None = None
    plan: Path | None = None


NOTHING_FURTHER = Further()


def run(
    settings: Settings,
    card: Path,
    manifests: list[Path],
    stages: list[Path],
    evaluation: Path,
    out: Path,
    further: Further = NOTHING_FURTHER,
) -> None:
    """Write the page from the run's card, the manifests and summaries of its stages in the order of the schedule, each
    summary beside metrics.jsonl and samples.png, and the folder of the evaluation: gallery.json, failures.json, and
    geneval.json if the card tells of it. Cards of earlier runs are those of `report.earlier`.

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
        **_scores(facts, settings, card),
        **_pictures(evaluation, facts),
        **_training(settings, facts, stages, summaries),
        "data": counts.account(tables),
        **_cost(settings, facts, summaries, tables, further),
        "guidance": extras.guidance(further.guidance),
        "ablation": extras.ablation(further.ablation),
        **_environment(facts, summaries),
    }
    content = _render(view).encode("utf-8", errors="replace")  # JSON may hold half a character, a page may not
    with atomic(out) as temporary:
        temporary.write_bytes(content)


def _render(view: View) -> str:
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("score", "percent", "count", "duration", "dollars")
    jinja.filters |= {name: getattr(words, name) for name in names}
    return jinja.get_template("page.html").render(view)


def _summary(file: Path) -> View:
    summary = read_json(file)
    missing = {"stage", "config", "images_seen", "images_seen_total", "parameters", "model", "device_hours"} - set(summary)
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
    if found := card.get("geneval"):
        tiles.append(("GenEval", words.score(found["score"]), f"mean of {len(found['tasks'])} tasks, at most 1"))
    tiles.append(("Training", words.duration(card["cost"]["seconds"]), cost.price(card["cost"])))
    tiles.append(("Images seen", words.count(summaries[-1]["images_seen_total"]), f"in {len(summaries)} stages"))
    return tiles


def _scores(card: View, settings: Settings, file: Path) -> View:
    return {
        "scores": scales.scores(card),
        "further": scales.further_scores(card),
        "accuracies": scales.accuracies(card),
        "attributes": scales.ATTRIBUTES,
        "preferences": extras.preferences(card),
        "comparison": earlier.comparison(file, settings.report.earlier),
    }


def _pictures(evaluation: Path, card: View) -> View:
    failures = pictures.listed_pictures(evaluation / "failures.json", PAIR, CAPTION)
    return {
        "gallery": pictures.listed_pictures(evaluation / "gallery.json", PAIR, CAPTION),
        "failures": sorted(failures, key=lambda pair: pair["clip_score"]),
        "shown_pairs": SHOWN_PAIRS,
        "geneval": extras.geneval(evaluation / "geneval.json", card),
    }


def _training(settings: Settings, card: View, files: list[Path], summaries: list[View]) -> View:
    histories = [curves.History.read(file.parent, summary) for file, summary in zip(files, summaries, strict=True)]
    grids = [pictures.grid(file.parent / "samples.png", summary) for file, summary in zip(files, summaries, strict=True)]
    spent = [summary["device_hours"] for summary in summaries]
    return {
        "plots": curves.plots(histories, spent, card["cost"]["dollars_per_hour"]),
        "grids": grids,
        "across_stages": pictures.rows_by_prompt(grids),
        "sample_prompts": settings.runtime.sample_prompts,
    }


def _cost(settings: Settings, card: View, summaries: list[View], tables: list[View], further: Further) -> View:
    gpus, evaluation = settings.runtime.gpus, settings.evaluation
    rules = cost.rules_of(further.benchmarks, summaries, tables, evaluation and evaluation.source, gpus)
    return cost.cost(card, rules, cost.plan_of(further.plan), gpus)


def _environment(card: View, summaries: list[View]) -> View:
    packages = environment.packages()
    return {
        "facts": environment.settings_of(card),
        "environment": environment.environment(card, summaries, packages),
        "listings": environment.listings(card, summaries, packages),
    }
