"""The plan on the terminal, or as JSON."""

import json
import sys
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.config import Config
from pipeline.plan import estimate
from pipeline.plan.estimate import SourcePlan, StagePlan
from pipeline.report import words

UNKNOWN = "?"


def run(config: Config, as_json: bool = False) -> None:
    """Print what a run with this configuration fetches, keeps, takes and costs."""
    sources, stages, there = estimate.sources(config), estimate.stages(config), estimate.here(config)
    if as_json:
        json.dump(_facts(config, sources, stages, there), sys.stdout, indent=1)
        print()
        return
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(_sources(config, sources, there))
    console.print(_stages(config, stages))
    for line in _remarks(config, sources, stages):
        console.print(line, soft_wrap=True)


def _facts(config: Config, sources: list[SourcePlan], stages: list[StagePlan], there: dict[str, tuple[int, float]]) -> Any:
    rows = [{**asdict(source), "files_here": there[source.name][0], "bytes_here": there[source.name][1]} for source in sources]
    price = config.report.dollars_per_hour
    return {
        "sources": rows,
        "stages": [asdict(stage) for stage in stages],
        "totals": {**_totals(sources, stages), "dollars": price * _hours(sources, stages)},
        "reckons_with": {**config.plan.model_dump(), "dollars_per_hour": price},
        "not_on_this_machine": list(estimate.shapes(config).assumed),
    }


def _totals(sources: list[SourcePlan], stages: list[StagePlan]) -> dict[str, float]:
    names = ("images", "usable", "fetch", "keep", "caption_hours", "encode_hours")
    sums = {name: sum(getattr(source, name) or 0 for source in sources) for name in names}
    return {
        **sums,
        "training_flops": sum(stage.flops for stage in stages),
        "training_hours": sum(stage.hours for stage in stages),
    }


def _hours(sources: list[SourcePlan], stages: list[StagePlan]) -> float:
    totals = _totals(sources, stages)
    return totals["caption_hours"] + totals["encode_hours"] + totals["training_hours"]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number > 1 else "left")
    return table


def _sources(config: Config, sources: list[SourcePlan], there: dict[str, tuple[int, float]]) -> Table:
    columns = ("images", "usable", "to fetch", "here", "to keep", "caption GPU-h", "encode GPU-h", "$")
    table, price = _table("Data", "source", "kind", *columns), config.report.dollars_per_hour
    for source in sources:
        hours = None if source.caption_hours is None else source.caption_hours + source.encode_hours
        numbers = (_count(source.images), _count(source.usable), _bytes(source.fetch), _bytes(there[source.name][1]))
        times = (_number(source.caption_hours), _number(source.encode_hours))
        kind = config.sources[source.name].kind
        table.add_row(source.name, kind, *numbers, _bytes(source.keep), *times, _dollars(price, hours))
    totals = _totals(sources, [])
    numbers = (_count(totals["images"]), _count(totals["usable"]), _bytes(totals["fetch"]))
    here, hours = sum(size for _, size in there.values()), (totals["caption_hours"], totals["encode_hours"])
    table.add_section()
    table.add_row("all", "", *numbers, _bytes(here), _bytes(totals["keep"]), *map(_number, hours), _dollars(price, sum(hours)))
    return table


def _stages(config: Config, stages: list[StagePlan]) -> Table:
    table = _table("Training", "stage", "", "px", "mask", "images seen", "epochs", "FLOPs", "GPU-h", "$")
    price = config.report.dollars_per_hour
    for stage in stages:
        chosen = config.stages[stage.name]
        shown = (str(chosen.px), words.percent(chosen.mask_ratio), _count(stage.images), _number(stage.epochs))
        table.add_row(stage.name, "", *shown, f"{stage.flops:.3g}", _number(stage.hours), _dollars(price, stage.hours))
    totals = _totals([], stages)
    seen, hours = sum(stage.images for stage in stages), totals["training_hours"]
    table.add_section()
    table.add_row("all", "", "", "", _count(seen), "", f"{totals['training_flops']:.3g}", _number(hours), _dollars(price, hours))
    return table


def _remarks(config: Config, sources: list[SourcePlan], stages: list[StagePlan]) -> list[str]:
    plan, totals = config.plan, _totals(sources, stages)
    hours, price = _hours(sources, stages), config.report.dollars_per_hour
    costs = f", {words.dollars(price * hours)} at {words.dollars(price)} an hour" if price else ""
    lines = [f"In all {words.count(hours)} GPU-hours{costs}."]
    if totals["fetch"]:
        seconds = totals["fetch"] / (1e6 * plan.fetch_mb_per_second)
        lines.append(f"Fetching takes {words.duration(seconds)} at {plan.fetch_mb_per_second:g} MB/s.")
    lines.append(
        f"Reckoned with: {words.percent(plan.train_share)} of {plan.peak_tflops:g} TFLOP/s in training, and a second on one GPU "
        f"{plan.encodes_per_second:g} latents of 256 px, {plan.texts_per_second:g} embeddings, {plan.captions_per_second:g} "
        "captions. These are assumptions: the section `plan` sets them, `python -m pipeline bench` measures yours."
    )
    if unknown := [source.name for source in sources if source.images is None]:
        lines.append(f"{UNKNOWN}: images of {words.listed(unknown)} are not known; sources.NAME.expect.images tells them.")
    if filled := [source.name for source in sources if config.sources[source.name].caption == "fill"]:
        lines.append(f"Captions of {words.listed(filled)} are counted as if all were missing.")
    if assumed := estimate.shapes(config).assumed:
        lines.append(f"Not on this machine, so shapes are those of `plan`: {words.listed(list(assumed))}.")
    return lines


def _count(number: float | None) -> str:
    return UNKNOWN if number is None else words.count(number)


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else words.score(value) if value < 1000 else f"{value:,.0f}"


def _dollars(price: float, hours: float | None) -> str:
    return UNKNOWN if hours is None else words.dollars(price * hours) if price else "–"


def _bytes(size: float | None) -> str:
    """1.2 TB, 44 GB, 5.1 MB; 10^3 a step."""
    if size is None:
        return UNKNOWN
    for least, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= least:
            return f"{size / least:.3g} {unit}"
    return f"{size:.0f} B" if size else "–"
