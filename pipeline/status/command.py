"""The table of a run: what is done, what would run again and why, what runs now, what failed."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.config import load
from pipeline.status.activity import Running, failed, name_of, running
from pipeline.status.dry_run import Job, jobs
from pipeline.status.reasons import why

RECORD = Path("results/run_config.json")  # written when a run starts
REASONS = 3  # of a row
ORDER = ("embedded_coco", "table", "collect", "caption", "encode", "manifest", "train", "sample", "evaluate")  # then all others
NEVER = "Nothing was run yet. `snakemake --cores all` starts it, `python -m pipeline plan` says what it will take."


@dataclass
class Row:
    """The jobs of one rule for one source or stage. `why`: reason -> jobs that have it."""

    rule: str
    of: str
    jobs: int = 0
    done: int = 0
    running: int = 0
    failed: int = 0
    stale: int = 0  # there, but from something else than it would be made from now
    why: dict[str, int] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        return self.jobs - self.done - self.running - self.failed - self.stale


def run(configfiles: Sequence[Path], as_json: bool = False) -> None:
    """Print where the run of config.yaml with these overlays stands.

    Raises: UserError for a configuration that is none, or one that Snakemake cannot plan.
    """
    config = load("config.yaml", *configfiles)
    now = running(config)  # first: what ends meanwhile is found done
    every, pending = jobs(configfiles) if RECORD.is_file() else ([], [])
    busy = {each.what for each in now}
    bad = {job.output: line for job, line in failed(pending, busy)}
    names = [*config.sources, *config.used_stages(), *config.arms]
    table = sorted(rows(every, pending, busy, set(bad)), key=lambda row: _place(row, names))
    faults = [{"job": job.label, "log": job.log, "line": bad[job.output]} for job in pending if job.output in bad]
    if as_json:
        facts = {"rows": [asdict(row) | {"missing": row.missing} for row in table], "failed": faults}
        json.dump({**facts, "running": [asdict(each) for each in now]}, sys.stdout, indent=1)
        print()
    else:
        _print(table, now, faults)


def rows(every: list[Job], pending: list[Job], busy: set[str], bad: set[tuple[str, ...]]) -> list[Row]:
    """A row for each rule and source or stage. `busy`: names of jobs that run; `bad`: outputs of those that failed."""
    found: dict[tuple[str, str], Row] = {}
    made_by = {file: job.label for job in every for file in job.output}
    waiting = {job.output: job for job in pending}
    for job in every:
        row = found.setdefault((job.rule, job.of), Row(job.rule, job.of))
        row.jobs += 1
        if name_of(job) in busy:
            row.running += 1
        elif job.output not in waiting:
            row.done += 1
        elif job.output in bad:
            row.failed += 1
        else:
            row.stale += all(Path(file).exists() for file in job.output)
            for reason in why(waiting[job.output], made_by):
                alike = reason.replace(job.wildcards.get("shard", "*"), "*")
                row.why[alike] = row.why.get(alike, 0) + 1
    return list(found.values())


def _place(row: Row, names: list[str]) -> tuple[int, int, str]:
    """In the order in which rules run, and in that of the configuration. Snakemake's own is not the same every time."""
    rule = ORDER.index(row.rule) if row.rule in ORDER else len(ORDER)
    first = row.of.split(" ")[0]
    return rule, names.index(first) if first in names else -1, f"{row.rule} {row.of}"


def _print(table: list[Row], now: list[Running], faults: list[dict[str, str]]) -> None:
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(_table(table) if table else NEVER, soft_wrap=not table)
    for each in now:
        console.print(f"running  {each.what}: {each.progress or 'just started'} ({each.holder})", soft_wrap=True)
    for fault in faults:
        console.print(f"failed   {fault['job']}: {fault['line']} ({fault['log']})", soft_wrap=True)
    if table:
        console.print(_last(table), soft_wrap=True)


def _table(rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1))
    for name, justify in (("step", "left"), ("of", "left"), ("done", "right"), ("state", "left"), ("why", "left")):
        table.add_column(name, justify=justify, overflow="fold")
    for row in rows:
        states = ("running", "failed", "stale", "missing")
        said = [f"{getattr(row, state)} {state}" for state in states if getattr(row, state)]
        table.add_row(row.rule, row.of, f"{row.done} of {row.jobs}", ", ".join(said) or "done", "; ".join(_reasons(row)))
    return table


def _reasons(row: Row) -> list[str]:
    more = len(row.why) - REASONS
    counts = [f"{reason} ({jobs})" if jobs < row.stale + row.missing else reason for reason, jobs in row.why.items()]
    return [*counts[:REASONS], *([f"and {more} more"] if more > 0 else [])]


def _last(table: list[Row]) -> str:
    left = sum(row.jobs - row.done - row.running for row in table)
    if not left:
        return "Everything is done."
    return f"{left} of {sum(row.jobs for row in table)} jobs are to run: give the run's command again."
