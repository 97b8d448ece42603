"""A run for which the disk has no room is not started: a file system of its own stands for the disk."""

import subprocess

import pytest

from tests.faults.test_full_disk import mounted
from tests.workflow.conftest import Project

FIRST = "results/data/scenes_synthetic/00000.json"


@pytest.fixture
def project(tmp_path):
    """A project that has run nothing yet."""
    return Project(tmp_path / "project")


def errors(done):
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]


@pytest.mark.timeout(600)
def test_a_run_that_cannot_fit_stops_before_anything_is_made_and_starts_once_there_is_room(project):
    results, whole = project.folder / "results", ("--until", "collect")
    with mounted(results, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        for asked in ((), whole):
            refused = project.snakemake(*asked)
            told = errors(refused)
            assert refused.returncode != 0 and len(told) == 1, refused.stdout + refused.stderr
            assert "this run needs about" in told[0] and "MB are free" in told[0] and "make room" in told[0]
            assert "runtime.check_disk: false" in told[0] and "Traceback" not in refused.stderr
            made = {file.relative_to(results).parts[:2] for file in results.rglob("*") if file.is_file()}
            assert made <= {("work", "locks")}, made

        assert project.snakemake("--dry-run").returncode == 0  # asks, and makes nothing
        part = project.snakemake("--", FIRST)  # what is asked for does fit
        assert part.returncode == 0 and (project.folder / FIRST).exists(), part.stderr

        subprocess.run(["mount", "-o", "remount,size=64m", results], check=True)
        done = project.snakemake(*whole)
        assert done.returncode == 0 and (results / "work/plan/plan.json").exists(), done.stderr
