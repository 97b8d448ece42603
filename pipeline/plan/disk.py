"""The room that a run needs on its disks, and the refusal to start one that has not got it."""

import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import write_json
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.plan.jobs import Job
from pipeline.plan.rates import Rates, rates
from pipeline.plan.rules import Side, all_jobs, rules, side
from pipeline.report import words

PLAN = Path("results/work/plan/plan.json")  # the plan that a run was started with
GOES_ON = ("results/work/", "results/downloads/")  # what lies in these is gone on from, and not made a second time


@dataclass(frozen=True)
class Disk:
    """One file system: bytes that are needed on it and free, and the folders, the largest need first."""

    needed: float
    free: float
    folders: tuple[str, ...]


def peak(config: Config, jobs: Iterable[Job], beside: Side) -> dict[str, float]:
    """Bytes by folder that `jobs` leave behind, and those that are there besides while as many run as fit side by side."""
    folders: dict[str, float] = {}
    scratch: dict[str, list[tuple[float, int]]] = {}
    for job in jobs:
        for folder, size in job.kept.items():
            folders[folder] = folders.get(folder, 0.0) + size
        for folder, size in job.scratch.items():
            scratch.setdefault(folder, []).append((size, beside.slots(job)))
    for folder, sizes in scratch.items():
        at_once = sorted((size for size, _ in sizes), reverse=True)[: sizes[0][1]]
        folders[folder] = folders.get(folder, 0.0) + sum(at_once)
    return folders


def disks(config: Config, jobs: Iterable[Job], beside: Side) -> list[Disk]:
    """What `jobs` need beyond what is there of them, by file system."""
    by_device: dict[int, dict[str, float]] = {}
    for folder, size in peak(config, jobs, beside).items():
        there = tree_bytes(Path(folder)) if folder.startswith(GOES_ON) else 0.0
        place = os.stat(_existing_parent(Path(folder))).st_dev
        by_device.setdefault(place, {})[folder] = max(0.0, size - there)
    return [_disk(folders) for folders in by_device.values()]


def _disk(folders: dict[str, float]) -> Disk:
    ordered = sorted(folders, key=lambda folder: -folders[folder])
    return Disk(sum(folders.values()), shutil.disk_usage(_existing_parent(Path(ordered[0]))).free, tuple(ordered))


def _existing_parent(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def tree_bytes(folder: Path) -> float:
    """Of all files below a folder, a file of several names once; 0 if there is none."""
    found: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.stat(os.path.join(place, name), follow_symlinks=False)
            except FileNotFoundError:
                continue  # another process was done with it
            found[status.st_dev, status.st_ino] = status.st_size
    return float(sum(found.values()))


def check(config: Config, jobs: Iterable[Job], beside: Side) -> None:
    """Raises: UserError if a disk has less room than `jobs` need."""
    for disk in disks(config, jobs, beside):
        if disk.needed > disk.free:
            needed, free = words.size(disk.needed), words.size(disk.free)
            raise UserError(
                f"{disk.folders[0]}: this run needs about {needed} on its disk and {free} are free; make room, put results/ on a "
                "larger disk, or use less data (`python -m pipeline plan` shows what needs it); or start it all the same with "
                "runtime.check_disk: false"
            )


def before_run(config: Config, started: Collection[str], cores: int | None) -> None:
    """For the workflow, before the first job: check the disks for the jobs that make the files `started`, then write the plan
    of the whole run for its report.

    Raises: UserError as `check`.
    """
    reckoned, beside = rates(config), side(config, cores, None, None)
    jobs = all_jobs(config, reckoned)
    if config.runtime.check_disk:
        check(config, [job for job in jobs if job.output in started], beside)
    keep(config, jobs, reckoned, beside)


def keep(config: Config, jobs: list[Job], reckoned: Rates, beside: Side, file: Path = PLAN) -> None:
    """Write the plan by rule: jobs, seconds one after another, device-hours, bytes."""
    found = {}
    for plan in rules(config, jobs, reckoned, beside):
        whole = plan.whole
        hours, seconds = round(whole.device_hours, 6), round(whole.seconds, 3)
        found[plan.name] = {"jobs": plan.jobs, "seconds": seconds, "device_hours": hours, "known": plan.known}
        found[plan.name] |= {"read_bytes": round(whole.read), "written_bytes": round(whole.written)}
    write_json(file, {"device": reckoned.device, "rules": found})
