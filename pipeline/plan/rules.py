"""What a run takes by rule, at so many jobs at once, and how much of that is done."""

import math
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.plan.estimate import HOUR
from pipeline.plan.jobs import Job, data_jobs
from pipeline.plan.rates import Rates
from pipeline.plan.training import evaluation_jobs, training_jobs

ORDER = (
    "embedded_coco", "table", "collect", "caption", "encode", "manifest", "train", "sample", "evaluate", "sample_guidance",
    "evaluate_guidance", "guidance", "card", "model", "report",
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """How many jobs run side by side. `gpus` in all; `cluster`: each job has a machine of its own."""

    jobs: int
    gpus: int
    cluster: bool = False

    def slots(self, job: Job) -> int:
        """Jobs like this one at once."""
        if not job.devices:
            return self.jobs
        if not self.gpus:  # jobs on one machine share its cores
            return self.jobs if self.cluster else 1
        return max(1, min(self.jobs, self.gpus // job.devices))


class Sums(NamedTuple):
    """Of some jobs: bytes, device-hours, seconds of all jobs one after another, and seconds of wall time."""

    read: float
    written: float
    device_hours: float
    seconds: float
    wall: float


@dataclass(frozen=True)
class RulePlan:
    """One rule: all its jobs, and those whose file is not there yet. `known` is False where something is not counted."""

    name: str
    jobs: int
    done: int
    whole: Sums
    left: Sums
    known: bool


def all_jobs(config: Config, rates: Rates) -> list[Job]:
    """Of the target `all`, in the order of the rules."""
    jobs = [*data_jobs(config, rates), *training_jobs(config, rates), *evaluation_jobs(config, rates)]
    return sorted(jobs, key=lambda job: ORDER.index(job.rule))


def side(config: Config, jobs: int | None, gpus: int | None, profile: Path | None) -> Side:
    """From the options, else the profile, else this machine. Raises: UserError for a profile that is not readable."""
    given = _profile(profile) if profile else {}
    cluster = given.get("executor", "local") != "local"
    at_once = jobs or given.get("jobs") or os.cpu_count() or 1
    cap = (given.get("resources") or {}).get("gpu", at_once * max(1, config.runtime.gpus) if cluster else config.runtime.gpus)
    found = cap if gpus is None else gpus
    if not (isinstance(at_once, int) and isinstance(found, int)):
        raise UserError(f"{profile}: jobs and resources.gpu must be whole numbers to plan with; give --jobs and --gpus")
    return Side(at_once, found if config.runtime.gpus else 0, cluster)


def _profile(path: Path) -> dict[str, object]:
    file = path / "profile.yaml" if path.is_dir() else path
    file = path / "config.yaml" if path.is_dir() and not file.exists() else file
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--profile {path}: {' '.join(str(error).split())}; give a folder with a profile.yaml") from error
    if not isinstance(found, dict):
        raise UserError(f"--profile {file}: must hold keys and values")
    return found


def rules(config: Config, jobs: Iterable[Job], rates: Rates, beside: Side) -> list[RulePlan]:
    """Every rule that has a job, in the order of the run."""
    by_rule: dict[str, list[Job]] = {}
    for job in jobs:
        by_rule.setdefault(job.rule, []).append(job)
    there = existing(by_rule_job.output for of_rule in by_rule.values() for by_rule_job in of_rule)
    return [_rule(config, name, by_rule[name], there, rates, beside) for name in ORDER if name in by_rule]


def existing(files: Iterable[str]) -> set[str]:
    """Those that are there. A folder is read once, however many of its files are asked for."""
    names: dict[str, set[str]] = {}
    found = set()
    for file in files:
        folder, _, name = file.rpartition("/")
        if folder not in names:
            names[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name in names[folder]:
            found.add(file)
    return found


def _rule(config: Config, name: str, jobs: list[Job], there: Collection[str], rates: Rates, beside: Side) -> RulePlan:
    left = [job for job in jobs if job.output not in there]
    whole, rest = (sums(config, some, rates, beside) for some in (jobs, left))
    return RulePlan(name, len(jobs), len(jobs) - len(left), whole, rest, all(job.known for job in jobs))


def sums(config: Config, jobs: list[Job], rates: Rates, beside: Side) -> Sums:
    """Without a GPU the machine is the device, and every job holds it."""
    seconds = [_seconds(job, rates) for job in jobs]
    held = [job.devices if config.runtime.gpus else max(1, job.devices) for job in jobs]
    hours = sum(time * devices for time, devices in zip(seconds, held, strict=True)) / HOUR
    read, written = sum(job.read for job in jobs), sum(job.written for job in jobs)
    return Sums(read, written, hours, sum(seconds), _wall(jobs, rates, beside))


def _seconds(job: Job, rates: Rates) -> float:
    """Of one job that has the network for itself."""
    return job.start + max(job.work, job.fetched / rates.fetch.value)


def _wall(jobs: list[Job], rates: Rates, beside: Side) -> float:
    """Of jobs of one rule, alike but for their sizes: as even as they can be shared, and never less than the longest."""
    if not jobs:
        return 0.0
    slots = beside.slots(jobs[0])
    starts = sum(job.start for job in jobs) / min(len(jobs), max(slots, 1 if beside.gpus else beside.jobs))
    shared = starts + sum(job.work for job in jobs) / slots
    return max(shared, sum(job.fetched for job in jobs) / rates.fetch.value, max(_seconds(job, rates) for job in jobs))


def total(plans: Iterable[RulePlan], which: str) -> Sums:
    """Sums over all rules, of the `whole` or what is `left`; wall time as if one rule came after another."""
    chosen = [getattr(plan, which) for plan in plans]
    return Sums(*(math.fsum(column) for column in zip(*chosen, strict=True)))
