"""All steps of a very small run, one after another, by the commands that the rules give.

Snakemake says the commands; the steps run in processes that a server forks, which has imported torch and its friends once.
"""

import itertools
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.artifacts import sha256_file, write_json
from pipeline.config import load
from tests.jobs import Patched
from tests.training import PRELOADED, command_line
from tests.workflow.conftest import Project

PRELOADED.append("transformers.models.clip.modeling_clip")
OVERLAY = """
sources:
  scenes: {count: 48, shards: 1}
  scenes_synthetic: {count: 32}
stages:
  low_masked: {images: 32, batch_images: 16, warmup_images: 0}
  high_full: {images: 32, batch_images: 16}
schedule: [low_masked, high_full]
evaluation:
  images: 8
  steps: 2
  bootstrap: 20
  untrained_images: 4
  geneval: {limit: 2, images_a_prompt: 1}
  curve: {images: 4, steps: 2, every_images: 16}
runtime: {checkpoint_every_images: 16, samples_every_images: 32, sample_shards: 2}
"""
COMMAND = re.compile(r"python -m pipeline (.*?)(?: 2>&1.*)?$", re.M)
# What says when, how fast or on what a step ran; a hash of such a file stands in further ones. Records of processes do too,
# and safetensors writes several metadata in any order.
VARIES = {"card.json", "fid_coco.json", "summary.json", "metrics.jsonl", "report.html", "README.md", "state.json", "geneval.json"}


class Step(NamedTuple):
    """A command of the workflow; `name` is that of its sub-command, and what it makes."""

    name: str
    arguments: list[str]

    @property
    def command(self) -> str:
        return self.name.split()[0]

    def option(self, name: str) -> str:
        return self.arguments[self.arguments.index(name) + 1]


class Chain:
    """Runs the steps in folders, each of which has a `results`."""

    def __init__(self, server: BaseContext, folder: Path, overlay: str = OVERLAY) -> None:
        self._server, self.folder = server, folder
        project = Project(folder / "project")
        self._overlays = [Path("tests/workflow/smoke.yaml"), project.overlay("chain.yaml", overlay)]
        done = project.snakemake("--dry-run", "--printshellcmds", "--", "all", overlays=tuple(self._overlays))
        assert done.returncode == 0, done.stdout + done.stderr
        self.written: dict[str, int] = {}  # bytes that a step adds, by its name
        self.steps = [_step(shlex.split(line)) for line in dict.fromkeys(COMMAND.findall(done.stdout))]
        self.settings = load(*(project.folder / file for file in ("config.yaml", *self._overlays))).model_dump(mode="json")

    def prepare(self, name: str) -> Path:
        """A folder for a run, with the record that Snakemake writes at its start."""
        folder = self.folder / name
        write_json(folder / "results/run_config.json", self.settings)
        return folder

    def run(self, step: Step, folder: Path, patch: Callable[[], None] | None = None, seconds: float = 120) -> tuple[int, str]:
        """Exit code, and all that was said, less progress."""
        log = folder.parent / f"{folder.name}.log"
        log.unlink(missing_ok=True)
        server = Patched(self._server, patch) if patch else self._server
        process = server.Process(target=command_line, args=(step.arguments, {}, folder, log))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"{step.name} hangs: {log.read_text()[-2000:]}")
        return process.exitcode, log.read_text()

    def whole(self, name: str) -> Path:
        """A folder in which every step has ended well."""
        folder = self.prepare(name)
        for step in self.steps:
            before = occupied(folder)
            self.succeeds(step, folder)
            self.written[step.name] = occupied(folder) - before
        return folder

    def succeeds(self, step: Step, folder: Path, patch: Callable[[], None] | None = None) -> str:
        code, told = self.run(step, folder, patch)
        assert code == 0, f"{step.name}: {told[-4000:]}"
        return told

    def copy(self, folder: Path, name: str) -> Path:
        """With hard links: whoever changes a file must replace it."""
        copied = self.folder / name
        shutil.copytree(folder, copied, symlinks=True, copy_function=_link)
        return copied


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def _step(arguments: list[str]) -> Step:
    command, *rest = arguments
    named = dict(itertools.pairwise(rest))
    if command == "embedded":  # the rule's number of scenes takes seconds to draw
        arguments = [command, rest[0], "--images", "48", "--two-objects", "8", "--out", named["--out"]]
    return Step(f"{command} {named['--out'].removeprefix('results/')}", arguments)


def occupied(folder: Path) -> int:
    """Bytes on the disk, in its blocks."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def files(folder: Path) -> dict[str, str]:
    """Name and hash of every result that the same command makes again to the byte."""
    results = folder / "results"
    return {str(path.relative_to(results)): sha256_file(path) for path in _stable(results)}


def _stable(results: Path) -> Iterator[Path]:
    for path in sorted(results.rglob("*")):
        if path.is_file() and path.name not in VARIES and not {"processes", "reference", "locks"} & set(path.parts):
            yield path


def one_line(told: str) -> str:
    """The error that ended a step, which is one line and the last."""
    assert "Traceback" not in told, told[-3000:]
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and told.splitlines()[-1] == errors[0], told[-3000:]
    return errors[0]


@pytest.fixture(scope="session")
def chain(server, tmp_path_factory):
    return Chain(server, tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="session")
def whole(chain):
    """The folder of a run that ended well. Do not change it: `chain.copy` gives a copy."""
    return chain.whole("whole")
