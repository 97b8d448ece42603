"""The evaluation card of a run on the terminal: what a run ends with."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.artifacts import read_json
from pipeline.report import scales, words

Card = dict[str, Any]


def run(card: Path) -> None:
    """Print scores with their scale, accuracies, time and cost, and where the page and the sample grid lie.

    Raises: UserError if `card` is missing or no evaluation card of a run.
    """
    facts = scales.check_card(card, read_json(card))
    console = Console(markup=False, highlight=False)  # names and paths are printed as they are
    console.print()
    console.print(_scores(facts))
    for score in _all_scores(facts):
        console.print(f"  {score.name}: {score.short}, {score.better}", soft_wrap=True)
    console.print()
    if columns := [column for column in scales.accuracies(facts) if column.kind != "reconstructed"]:
        console.print(_accuracies(columns))
    for line in [*_geneval(facts), *_remarks(facts), *_files(card, facts)]:
        console.print(line, soft_wrap=True)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1))


def _scores(card: Card) -> Table:
    title = f"{card['images']:,} images of {card['px']} px, drawn for captions that were never trained on"
    table = _table(title)
    for column in ("metric", "value", *scales.REFERENCES.values()):
        table.add_column(column, justify="left" if column == "metric" else "right", no_wrap=column == "value")
    for score in _all_scores(card):
        references = {mark.kind: mark.text for mark in score.marks}
        beside = [references.get(kind, "–") for kind in scales.REFERENCES]
        table.add_row(score.name, f"{score.value} {score.error}".strip(), *beside)
    return table


def _all_scores(card: Card) -> list[scales.Score]:
    return [*scales.scores(card), *scales.further_scores(card)]


def _accuracies(columns: list[scales.Column]) -> Table:
    table = _table("Prompt accuracy, read off the pictures by a detector")
    table.add_column("attribute")
    for column in columns:
        table.add_column(f"{column.kind}\n{column.group}\n{column.images:,} images", justify="right")
    for attribute in scales.ATTRIBUTES:
        table.add_row(attribute, *(words.percent(column.shares[attribute]) for column in columns))
    return table


def _geneval(card: Card) -> list[str]:
    """Score and tasks, where the pictures were asked what they show."""
    if not (found := card.get("geneval")):
        return []
    tasks = ", ".join(f"{name.replace('_', ' ')} {words.percent(share)}" for name, share in found["tasks"].items())
    trust = "" if found["self_test"] is None else f"; the detector finds {words.percent(found['self_test'])} in real images"
    return [f"GenEval: {words.score(found['score'])} on {found['images']:,} pictures ({tasks}{trust})", ""]


def _remarks(card: Card) -> list[str]:
    cost, stages = card["cost"], card["stages"]
    price = f", {words.dollars(cost['dollars'])} at {words.dollars(cost['dollars_per_hour'])} a device-hour"
    lines = [
        f"Training: {words.duration(cost['seconds'])} in {len(stages)} stages on {stages[-1]['device']}"
        + (price if cost["dollars_per_hour"] else "")
    ]
    if processes := card["processes"]:
        seconds = sum(process["seconds"] for process in processes)
        lines.append(f"All steps: {words.duration(seconds)} in {len(processes)} processes, "
                     f"{card['processes_with_torch']} of them loaded torch")  # fmt: skip
    if card["weights"]["file"] != "ema.safetensors":
        lines.append(f"Weights: {scales.weights_in_words(card)}")
    if not card["comparable_to_published"]:
        lines.append(f"Not comparable with published FID: {'; '.join(card['why_not'])}")
    return lines + [f"Mind: {warning}" for warning in card["warnings"]]


def _files(card: Path, facts: Card) -> list[str]:
    folder = card.parent
    files = {
        "Report page": folder / "report.html",
        "Sample grid": folder / "eval" / facts["stages"][-1]["name"] / "samples.png",
    }
    return ["", *(f"{what}: {file}" + ("" if file.exists() else f" (not made yet: snakemake --cores all {file})")
                  for what, file in files.items())]  # fmt: skip
