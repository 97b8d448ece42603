"""Time and cost of training by stage and of the whole run by rule, beside what was planned."""

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts import read_json
from pipeline.errors import UserError
from pipeline.report import benchmarks, words

SHOWN_PROCESSES = 60
View = dict[str, Any]


class Planned(NamedTuple):
    """What a rule was planned to take before the run: seconds of all its jobs, one after another, and device-hours."""

    seconds: float
    device_hours: float


def cost(card: View, rules: list[benchmarks.Rule], plan: dict[str, Planned], gpus: int) -> View:
    """Of the whole page; `rules` and `plan` are empty where there are no benchmarks, or no plan."""
    spent = card["cost"]
    slowest = sorted(card["processes"], key=lambda process: -process["seconds"])[:SHOWN_PROCESSES]
    return {
        "cost": {**spent, "price": price(spent), "dollars": _dollars(spent, spent["dollars"])},
        "plan": _plan(card),
        "stage_costs": [_stage(stage, spent) for stage in card["stages"]],
        "skipped_steps": sum(stage["skipped_steps"] or 0 for stage in card["stages"]),
        "rules": [_rule(rule, plan.get(rule.name), spent) for rule in rules],
        "rules_in_all": _in_all(rules, plan, spent) if rules else None,
        "rules_planned": any(rule.name in plan for rule in rules),
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


def plan_of(file: Path | None) -> dict[str, Planned]:
    """By rule, those that share a benchmark folder together. Empty without a file: runs of older programs left none.

    Raises: UserError if the file is not a plan.
    """
    if file is None or not file.is_file():
        return {}
    found: dict[str, Planned] = {}
    try:
        for name, rule in read_json(file)["rules"].items():
            name = name.removesuffix("_guidance")
            if name in benchmarks.ORDER:
                before = found.get(name, Planned(0.0, 0.0))
                found[name] = Planned(before.seconds + rule["seconds"], before.device_hours + rule["device_hours"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not the plan of a run ({error}); delete it") from error
    return found


def _rule(rule: benchmarks.Rule, planned: Planned | None, spent: View) -> View:
    return _shown({**rule._asdict(), "planned": planned}, spent)


def _in_all(rules: list[benchmarks.Rule], plan: dict[str, Planned], spent: View) -> View:
    sums = {name: sum(getattr(rule, name) or 0 for rule in rules) for name in ("jobs", "seconds", "cpu_seconds", "device_hours")}
    memory = max((rule.memory_mb or 0 for rule in rules), default=0)
    ran = [plan[rule.name] for rule in rules if rule.name in plan]
    planned = Planned(*map(sum, zip(*ran, strict=True))) if ran else None
    return _shown({"name": "all", **sums, "longest": None, "memory_mb": memory, "planned": planned}, spent)


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
        "planned_seconds": told("planned", lambda planned: words.duration(planned.seconds)),
        "planned_hours": told("planned", lambda planned: f"{planned.device_hours:.3g}" if planned.device_hours else "–"),
        "difference": told("planned", lambda planned: _difference(rule["seconds"], planned.seconds)),
        "dollars": _dollars(spent, hours * spent["dollars_per_hour"]) if hours else "–",
    }


def _difference(took: float, planned: float) -> str:
    """+12 %, -40 %; from twice as much on 2.6 times."""
    if not planned:
        return "–"
    return f"{took / planned:.2g} times" if took >= 2 * planned else f"{100 * (took / planned - 1):+.0f} %"


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
