"""What runs now, by the locks that steps hold, and what failed, by its log."""

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from pipeline.config import Config
from pipeline.lock import DRIVER, Holder, Lock
from pipeline.status.dry_run import Job

LOCKS = DRIVER.parent
LOGS = Path("results/logs")
TAIL_BYTES = 20_000
STEPS_DONE = re.compile(r"\d+ of \d+ steps \(.*\) done")


@dataclass(frozen=True)
class Running:
    """A step that holds its lock. `what` is the step and what it works on, as in the name of its log."""

    what: str
    holder: str
    progress: str


def running(config: Config) -> list[Running]:
    """Whoever drives the run, and its steps, on this machine or on another that shares the folder."""
    paths = [DRIVER, *sorted(LOCKS.glob("*-*.lock"))]
    found = ((path.stem, held(path)) for path in paths)
    return [Running(what, str(holder), _progress(config, what)) for what, holder in found if holder]


def held(path: Path) -> Holder | None:
    """Who holds the lock; None if nobody does."""
    holder = Lock(path).read()
    return holder if holder and not holder.ended and _alive(path, holder) else None


def _alive(path: Path, holder: Holder) -> bool:
    """A lock of this machine is not tried: who takes it for a moment stands in the way of a step that starts."""
    if holder.host == socket.gethostname():
        try:  # the number may have gone to a younger process
            process, since = psutil.Process(holder.pid), datetime.fromisoformat(holder.since).timestamp()
            return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= since + 1
        except psutil.NoSuchProcess:
            return False
    lock = Lock(path)
    if not lock.take():
        return True
    lock.release()
    return False


def _progress(config: Config, what: str) -> str:
    """Of training what metrics.jsonl says, of others the last line of the log."""
    if what == DRIVER.stem:
        return _of_driver()
    step, _, name = what.partition("-")
    if step == "train" and name in config.stages and (line := _newest_line(Path("results/work/train") / name)):
        return _of_training(line, config.stages[name].images)
    return last_line(LOGS / step / f"{name}.log")


def _of_driver() -> str:
    """How many of the jobs that it started with are done, by its newest log."""
    logs = sorted(Path(".snakemake/log").glob("*.log"))
    return next((line for line in reversed(_tail(logs[-1])) if STEPS_DONE.fullmatch(line)), "") if logs else ""


def _newest_line(folder: Path) -> dict[str, float]:
    """The newest line of the newest run of a stage that says where it is."""
    files = sorted(folder.glob("*/metrics.jsonl"), key=lambda file: file.stat().st_mtime)
    for text in reversed(_tail(files[-1])) if files else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # not written whole yet
        if isinstance(line, dict) and "images_per_second" in line:
            return line
    return {}


def _of_training(line: dict[str, float], total: int) -> str:
    rate = line["images_per_second"]
    left = f", {_duration((total - line['images']) / rate)} left" if rate else ""
    return f"{line['images']:,} of {total:,} images, {rate:,.0f} a second{left}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def last_line(file: Path) -> str:
    """Of a log; empty if there is none."""
    return next((line.strip() for line in reversed(_tail(file)) if line.strip()), "")


def _tail(file: Path) -> list[str]:
    try:
        with open(file, "rb") as opened:
            opened.seek(max(0, file.stat().st_size - TAIL_BYTES))
            return opened.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def failed(pending: list[Job], busy: set[str]) -> Iterator[tuple[Job, str]]:
    """Jobs whose last attempt came to no end, and the last line of their logs. `busy`: what runs, as in `Running`. Beside a
    driver, a job without an error may be about to start."""
    for job in pending:
        log = Path(job.log)
        lost = not all(Path(file).exists() for file in job.output)
        if not lost or not job.log or not log.is_file() or name_of(job) in busy:
            continue
        line = last_line(log)
        if line.startswith("error:") or not (DRIVER.stem in busy or _ended(job, log)):
            yield job, line or "stopped without a word"


def _ended(job: Job, log: Path) -> bool:
    """Whether the attempt came to its end, after which its benchmark is written: then its output was removed later."""
    benchmark = Path(job.benchmark)
    return not job.benchmark or (benchmark.is_file() and benchmark.stat().st_mtime >= log.stat().st_mtime)


def name_of(job: Job) -> str:
    """As its lock is named: after the log."""
    return "-".join(Path(job.log).relative_to(LOGS).with_suffix("").parts) if job.log else ""
