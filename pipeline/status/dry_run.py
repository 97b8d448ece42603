"""The jobs of the workflow as Snakemake sees them. What runs again is for Snakemake to say, so it is asked, by dry runs."""

import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError

HEAD = re.compile(r"^(?:local)?(?:rule|checkpoint) (\w+):$", re.M)
FIELD = re.compile(r"^    (output|log|benchmark|reason|wildcards): (.*)$", re.M)
EACH_SHARD = ("shard", "part", "parts")  # wildcards of jobs that share a row of the table


@dataclass(frozen=True)
class Job:
    """A job of the workflow. `reason` is why it would run, in Snakemake's words."""

    rule: str
    output: tuple[str, ...]
    log: str = ""
    benchmark: str = ""
    reason: str = ""
    wildcards: dict[str, str] = field(default_factory=dict)

    @property
    def of(self) -> str:
        """The source, stage or variant that it works on; empty where there is but one job of the rule."""
        return " ".join(value for name, value in self.wildcards.items() if name not in EACH_SHARD)

    @property
    def label(self) -> str:
        return f"{self.rule} {self.of}".strip()


def jobs(configfiles: Sequence[Path]) -> tuple[list[Job], list[Job]]:
    """All jobs of the run, and those that would run now, without the target `all`.

    Raises: UserError if Snakemake cannot plan the run, with what it says.
    """
    with ThreadPoolExecutor() as both:
        texts = both.map(lambda options: _dry_run(configfiles, options), (["--forceall"], []))
        every, pending = map(parse, texts)
    return every, pending


def _dry_run(configfiles: Sequence[Path], options: list[str]) -> str:
    overlays = ["--configfile", *map(str, configfiles)] if configfiles else []
    words = ["--cores", "1", "--dry-run", "--nolock", "--rerun-incomplete", *options, *overlays]
    done = subprocess.run([sys.executable, "-m", "snakemake", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise UserError(f"snakemake --dry-run: {' '.join(said[-3:])}")
    return done.stdout


def parse(text: str) -> list[Job]:
    """The jobs that a dry run lists, in its order."""
    parts = HEAD.split(text)[1:]  # name, text, name, text …
    found = (_job(rule, dict(FIELD.findall(body))) for rule, body in zip(parts[::2], parts[1::2], strict=True))
    return [job for job in found if job.output]


def _job(rule: str, fields: dict[str, str]) -> Job:
    wildcards = dict(item.split("=", 1) for item in fields.pop("wildcards", "").split(", ") if item)
    output = tuple(fields.pop("output", "").split(", ")) if fields.get("output") else ()
    return Job(rule, output, wildcards=wildcards, **fields)
