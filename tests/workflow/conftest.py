"""A copy of the project that tests may run in and edit, and Snakemake as a user calls it."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pipeline.fingerprint import ROOT

SMOKE = Path("tests/workflow/smoke.yaml")


class Project:
    """A checkout in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        keep = shutil.ignore_patterns("__pycache__")
        for name in ("pipeline", "workflow", "envs", "tests/workflow"):
            shutil.copytree(ROOT / name, folder / name, ignore=keep)
        (folder / "profiles").symlink_to("workflow/profiles")  # Snakemake finds the default profile there
        for name in ("Snakefile", "config.yaml"):
            shutil.copy(ROOT / name, folder / name)

    def snakemake(self, *arguments: str, overlays: tuple[Path | str, ...] = (SMOKE,)) -> subprocess.CompletedProcess[str]:
        return subprocess.run(**self._program(arguments, overlays), capture_output=True, text=True)

    def start(self, *arguments: str, overlays: tuple[Path | str, ...] = (SMOKE,)) -> subprocess.Popen[bytes]:
        """The same without waiting for its end; nobody reads what it says."""
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(**self._program(arguments, overlays), **silent)

    def _program(self, arguments: tuple[str, ...], overlays: tuple[Path | str, ...]) -> dict[str, Any]:
        configfiles = ["--configfile", *map(str, overlays)] if overlays else []
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        # A thread a job: several tests run side by side, and OpenMP waits badly where there are more threads than cores.
        command = ["snakemake", "--cores", "2", "--max-threads", "1", *configfiles, *arguments]
        return {"args": command, "cwd": self.folder, "env": {**os.environ, "PATH": path}}

    def pipeline(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=self.folder, capture_output=True, text=True)

    def planned(self, *overlays: Path | str, target: str = "all", options: tuple[str, ...] = ()) -> Counter[str]:
        """Jobs by rule that a run would start, without `all`."""
        done = self.snakemake("--dry-run", *options, "--", target, overlays=(SMOKE, *overlays))
        assert done.returncode == 0, done.stdout + done.stderr
        table = re.search(r"^job +count\n[- ]+\n(.*?)^total", done.stdout, re.M | re.S)
        rows = (line.split() for line in table[1].splitlines()) if table else ()
        return Counter({rule: int(count) for rule, count in rows if rule != "all"})

    def overlay(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.write_text(text)
        return file

    def copy(self, folder: Path) -> "Project":
        """With times kept, so that Snakemake takes it as it is."""
        temporary = folder.with_name(f".{folder.name}")
        shutil.copytree(self.folder, temporary, symlinks=True)
        temporary.rename(folder)
        return Project.at(folder)

    @classmethod
    def at(cls, folder: Path) -> "Project":
        """One that is there."""
        project = object.__new__(cls)
        project.folder = folder
        return project


@pytest.fixture(scope="session")
def make_project():
    """make_project(FOLDER): a project that has run nothing yet."""
    return Project


@pytest.fixture
def project(tmp_path):
    """A project that has run nothing yet."""
    return Project(tmp_path / "project")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A project whose small run has ended. Do not change it: `clone` gives a copy.

    It is run once for all of pytest's processes, and each has a copy: Snakemake locks the folder it works in.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(shared / "finished.lock"):
        if not (shared / "finished").is_dir():
            project = Project(tmp_path_factory.mktemp("running") / "project")
            done = project.snakemake()
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
            project.copy(shared / "finished")
    return Project.at(shared / "finished").copy(tmp_path_factory.mktemp("finished") / "project")


@pytest.fixture
def clone(finished, tmp_path):
    """A copy of the finished project."""
    return finished.copy(tmp_path / "clone")
