"""The plan on the terminal, or as JSON."""

import json
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.config import Config
from pipeline.plan import estimate, told
from pipeline.plan.rules import RulePlan, Side, Sums, total
from pipeline.plan.whole import Plan, facts
from pipeline.report import words


def run(config: Config, beside: Side, as_json: bool = False) -> None:
    """Print what a run with this configuration fetches, keeps, takes and costs."""
    plan = Plan.of(config, beside)
    if as_json:
        json.dump(facts(plan), sys.stdout, indent=1)
        print()
        return
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 160)
    for shown in (_sources(plan), _stages(plan), _rules(plan)):
        console.print(shown)
    for line in told.lines(plan):
        console.print(line, soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _sources(plan: Plan) -> Table:
    columns = ("kind", "images", "usable", "to fetch", "here", "to keep", "caption h", "encode h")
    table = _table("Data", "source", *columns)
    for source in plan.sources:
        sizes = (told.size(size) for size in (source.fetch, plan.here[source.name][1], source.keep))
        times = (told.number(source.caption_hours), told.number(source.encode_hours))
        kind = plan.config.sources[source.name].kind
        table.add_row(source.name, kind, told.count(source.images), told.count(source.usable), *sizes, *times)
    totals, here = plan.totals(), sum(size for _, size in plan.here.values())
    sizes = (told.size(size) for size in (totals["fetch"], here, totals["keep"]))
    times = (told.number(totals["caption_hours"]), told.number(totals["encode_hours"]))
    table.add_section()
    table.add_row("all", "", told.count(totals["images"]), told.count(totals["usable"]), *sizes, *times)
    return table


def _stages(plan: Plan) -> Table:
    table = _table("Training", "stage", "px", "mask", "images seen", "epochs", "FLOPs", "device-h at peak", "device-h")
    for stage in plan.stages:
        chosen = plan.config.stages[stage.name]
        shown = (str(chosen.px), words.percent(chosen.mask_ratio), told.count(stage.images), told.number(stage.epochs))
        at_peak = stage.flops / plan.rates.peak.value / estimate.HOUR
        table.add_row(stage.name, *shown, f"{stage.flops:.4g}", told.number(at_peak), told.number(stage.hours))
    totals, seen = plan.totals(), sum(stage.images for stage in plan.stages)
    times = (told.number(totals["training_hours_at_peak"]), told.number(totals["training_hours"]))
    table.add_section()
    table.add_row("all", "", "", told.count(seen), "", f"{totals['training_flops']:.4g}", *times)
    return table


def _rules(plan: Plan) -> Table:
    took = ("took h",) if plan.took else ()
    table = _table(
        "Rules", "rule", "jobs", "done", "reads", "writes", "device-h", *took, "$", "time", "left h", "left $", "left time"
    )
    for one in plan.rules:
        table.add_row(*_rule(plan, one, plan.took[one.name].device_hours if one.name in plan.took else None))
    jobs, done = (sum(getattr(one, name) for one in plan.rules) for name in ("jobs", "done"))
    sums, known = (total(plan.rules, which) for which in ("whole", "left")), all(one.known for one in plan.rules)
    table.add_section()
    table.add_row(*_rule(plan, RulePlan("all", jobs, done, *sums, known), sum(rule.device_hours for rule in plan.took.values())))
    return table


def _rule(plan: Plan, one: RulePlan, took: float | None) -> Sequence[str]:
    """A row. Something unknown adds to the numbers with a question mark."""
    more = "" if one.known else " + ?"
    sizes = [told.size(number) + more for number in (one.whole.read, one.whole.written)]
    found = [] if not plan.took else ["" if took is None else told.number(took)]
    whole, left = _costs(plan, one.whole), _costs(plan, one.left)
    return [one.name.replace("_", " "), f"{one.jobs:,}", f"{one.done:,}", *sizes, whole[0] + more, *found, *whole[1:], *left]


def _costs(plan: Plan, sums: Sums) -> list[str]:
    """Device-hours, dollars and wall time."""
    wall = words.duration(sums.wall) if sums.wall else "–"
    return [told.number(sums.device_hours), told.dollars(plan.price, sums.device_hours), wall]
