"""Time, memory and device-hours of every rule, from the benchmark files that Snakemake writes."""

import csv
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError

# In the order of the run. Rules of which a job holds one device, or all of them; the others hold none.
ORDER = ("embedded_coco", "table", "collect", "caption", "encode", "manifest", "train", "sample", "evaluate")
ONE_DEVICE, ALL_DEVICES = {"caption", "encode", "sample", "evaluate"}, {"train"}


class Rule(NamedTuple):
    """Sums over the jobs of a rule; None where Snakemake measured nothing, as of very short jobs."""

    name: str
    jobs: int
    seconds: float
    longest: float
    cpu_seconds: float | None
    memory_mb: float | None  # of the largest job
    device_hours: float


class Job(NamedTuple):
    seconds: float
    cpu_seconds: float | None
    memory_mb: float | None


def rules(folder: Path, names: Collection[str], gpus: int) -> list[Rule]:
    """Rules of the run whose stages and sources are `names`: files of other configurations may lie there too.

    On a machine without a GPU the machine is the device, and every job holds it.
    Raises: UserError for a file that is no benchmark.
    """
    found = []
    for name in ORDER:
        files = sorted(file for file in [folder / f"{name}.tsv", *(folder / name).glob("*.tsv")] if _is_of(file, name, names))
        if jobs := [_job(file) for file in files if file.exists()]:
            found.append(_rule(name, jobs, gpus))
    return found


def _is_of(file: Path, rule: str, names: Collection[str]) -> bool:
    return file.stem == rule or any(file.stem == name or file.stem.startswith(f"{name}-") for name in names)


def _job(file: Path) -> Job:
    """All rows of a file: repetitions of a job."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
        seconds = [float(row["s"]) for row in rows]
        assert rows and all(map(math.isfinite, seconds))
        cpu, memory = ([_number(row.get(name)) for row in rows] for name in ("cpu_time", "max_rss"))
    except (OSError, ValueError, KeyError, TypeError, AssertionError, csv.Error) as error:
        raise UserError(f"{file}: not a benchmark of Snakemake ({error}); delete it") from error
    return Job(sum(seconds), _known(cpu, sum), _known(memory, max))


def _number(text: str | None) -> float | None:
    """Snakemake writes NA or - for what it did not see."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _known(values: list[float | None], total: Callable[[list[float]], float]) -> float | None:
    known = [value for value in values if value is not None]
    return total(known) if known else None


def _rule(name: str, jobs: list[Job], gpus: int) -> Rule:
    seconds = sum(job.seconds for job in jobs)
    held = 1 if not gpus else gpus if name in ALL_DEVICES else int(name in ONE_DEVICE)
    return Rule(
        name=name,
        jobs=len(jobs),
        seconds=seconds,
        longest=max(job.seconds for job in jobs),
        cpu_seconds=_known([job.cpu_seconds for job in jobs], sum),
        memory_mb=_known([job.memory_mb for job in jobs], max),
        device_hours=seconds * held / 3600,
    )
