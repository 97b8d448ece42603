"""Time and cost of training by stage and of the whole run by rule, beside what was planned."""

from pathlib import Path
from typing import Any

from pipeline.report import benchmarks, words

SHOWN_PROCESSES = 60
View = dict[str, Any]


def cost(card: View, rules: list[benchmarks.Rule], gpus: int) -> View:
    """Of the whole page; `rules` are empty where there are no benchmarks."""
    spent = card["cost"]
    slowest = sorted(card["processes"], key=lambda process: -process["seconds"])[:SHOWN_PROCESSES]
    return {
        "cost": {**spent, "price": price(spent), "dollars": _dollars(spent, spent["dollars"])},
        "plan": _plan(card),
        "stage_costs": [_stage(stage, spent) for stage in card["stages"]],
        "skipped_steps": sum(stage["skipped_steps"] or 0 for stage in card["stages"]),
        "rules": [_rule(rule, spent) for rule in rules],
        "rules_in_all": _in_all(rules, spent) if rules else None,
        "gpus": gpus,
        "slowest": slowest,
    }


def price(spent: View) -> str:
    if not spent["dollars_per_hour"]:
        return "no price set"
    return f"{words.dollars(spent['dollars'])} at {words.dollars(spent['dollars_per_hour'])} a device-hour"


def rules_of(
    folder: Path | None, summaries: list[View], tables: list[View], evaluated: str | None, gpus: int
) -> list[benchmarks.Rule]:
    """Benchmarks in `folder` of these stages, of the sources they are trained on and of the evaluated one."""
    if folder is None:
        return []
    sources = {source for table in tables for source in table["counts"]}
    names = {*sources, *(summary["stage"] for summary in summaries), *filter(None, [evaluated])}
    return benchmarks.rules(folder, names, gpus)


def _dollars(spent: View, amount: float | None) -> str:
    return words.dollars(amount) if spent["dollars_per_hour"] and amount is not None else "–"


def _rule(rule: benchmarks.Rule, spent: View) -> View:
    planned = spent["planned_device_hours"] if rule.name == "train" else None
    return _shown(rule._asdict() | {"planned": planned}, spent)


def _in_all(rules: list[benchmarks.Rule], spent: View) -> View:
    sums = {name: sum(getattr(rule, name) or 0 for rule in rules) for name in ("jobs", "seconds", "cpu_seconds", "device_hours")}
    memory = max((rule.memory_mb or 0 for rule in rules), default=0)
    return _shown({"name": "all", **sums, "longest": None, "memory_mb": memory, "planned": None}, spent)


def _shown(rule: View, spent: View) -> View:
    def told(name: str, tell: Any) -> str:
        return "–" if rule[name] is None else tell(rule[name])

    hours = rule["device_hours"]
    return {
        "name": rule["name"].replace("_", " "),
        "jobs": f"{rule['jobs']:,}",
        "seconds": words.duration(rule["seconds"]),
        "longest": told("longest", words.duration),
        "cpu": told("cpu_seconds", words.duration),
        "memory": told("memory_mb", lambda size: f"{size:,.0f} MB"),
        "hours": f"{hours:.3g}" if hours else "–",
        "planned": told("planned", lambda value: f"{value:.3g}"),
        "dollars": _dollars(spent, hours * spent["dollars_per_hour"]) if hours else "–",
    }


def _stage(stage: View, spent: View) -> View:
    share, plan = stage["share_of_peak"], stage["plan"]
    return {
        **stage,
        "dollars": _dollars(spent, stage["dollars"]),
        "share_of_peak": "–" if share is None else words.percent(share),
        "planned_hours": f"{plan['device_hours']:.3g}" if plan else "–",
    }


def _plan(card: View) -> str:
    """What training was planned to take, empty where a stage has no plan."""
    spent = card["cost"]
    if spent["planned_device_hours"] is None:
        return ""
    shares = sorted({words.percent(stage["plan"]["share_of_peak"]) for stage in card["stages"]})
    amount = f", {words.dollars(spent['planned_dollars'])}" if spent["dollars_per_hour"] else ""
    return f"{spent['planned_device_hours']:.3g} device-hours{amount}, at {words.listed(shares)} of the device's peak"
