"""The whole plan of a run: sources, stages, rules and disks, and what is done of it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.config import Config
from pipeline.plan import disk, estimate
from pipeline.plan.estimate import SourcePlan, StagePlan
from pipeline.plan.rates import Rates, rates
from pipeline.plan.rules import RulePlan, Side, all_jobs, existing, rules, total
from pipeline.report import benchmarks

BENCHMARKS = Path("results/benchmarks")


@dataclass(frozen=True)
class Plan:
    """`here` are files and bytes by source, `took` is what Snakemake measured of rules that ran."""

    config: Config
    rates: Rates
    beside: Side
    sources: list[SourcePlan]
    stages: list[StagePlan]
    rules: list[RulePlan]
    peak: dict[str, float]  # bytes by folder
    disks: list[disk.Disk]  # for what is left
    here: dict[str, tuple[int, float]]
    took: dict[str, benchmarks.Rule]

    @classmethod
    def of(cls, config: Config, beside: Side) -> Self:
        reckoned = rates(config)
        jobs = all_jobs(config, reckoned)
        there = existing(job.output for job in jobs)
        left = [job for job in jobs if job.output not in there]
        names = {*config.training_sources(), config.evaluation.source, *config.schedule}
        took = {rule.name: rule for rule in benchmarks.rules(BENCHMARKS, names, config.runtime.gpus)}
        return cls(
            config,
            reckoned,
            beside,
            estimate.sources(config, reckoned),
            estimate.stages(config, reckoned),
            rules(config, jobs, reckoned, beside),
            disk.peak(config, jobs, beside),
            disk.disks(config, left, beside),
            estimate.here(config),
            took,
        )

    @property
    def price(self) -> float:
        """Dollars of a device-hour, 0 where none is set."""
        return self.config.report.dollars_per_hour

    def totals(self) -> dict[str, float]:
        """Of all sources and stages."""
        names = ("images", "usable", "fetch", "keep", "caption_hours", "encode_hours")
        sums = {name: sum(getattr(source, name) or 0 for source in self.sources) for name in names}
        flops = sum(stage.flops for stage in self.stages)
        return {
            **sums,
            "training_flops": flops,
            "training_hours": sum(stage.hours for stage in self.stages),
            "training_hours_at_peak": flops / self.rates.peak.value / estimate.HOUR,
        }


def facts(plan: Plan) -> dict[str, Any]:
    """All of it, for JSON."""
    price = plan.price
    rows = [{**asdict(one), "keep": one.keep, "files_here": plan.here[one.name][0], "bytes_here": plan.here[one.name][1]}
            for one in plan.sources]  # fmt: skip
    by_rule = {one.name: {"jobs": one.jobs, "done": one.done, "known": one.known, "whole": one.whole._asdict(),
                          "left": one.left._asdict()} for one in plan.rules}  # fmt: skip
    sums = {which: total(plan.rules, which)._asdict() for which in ("whole", "left")}
    hours = sums["whole"]["device_hours"]
    return {
        "sources": rows,
        "stages": [asdict(stage) for stage in plan.stages],
        "rules": by_rule,
        "totals": {
            **plan.totals(),
            **sums,
            "device_hours": hours,
            "dollars": price * hours,
            "dollars_left": price * sums["left"]["device_hours"],
        },
        "side_by_side": asdict(plan.beside),
        "peak_disk_bytes": {"all": sum(plan.peak.values()), "by_folder": plan.peak},
        "disks": [asdict(one) for one in plan.disks],
        "took": {name: rule._asdict() for name, rule in plan.took.items()},
        "reckons_with": {**asdict(plan.rates), "dollars_per_hour": price},
        "not_on_this_machine": list(estimate.shapes(plan.config).assumed),
    }
