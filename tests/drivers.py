"""Snakemake that is killed: a small run, what it has started, and what it has made."""

import time
from contextlib import suppress

import psutil
import pytest

from tests.workflow.conftest import SMOKE, Project

# Every kind of step once or twice, and two trainings; laid over the smoke test's.
SMALL = """
schedule: [low_masked, high_full]
sources:
  scenes: {count: 48, shards: 2}
  scenes_synthetic: {count: 32}
stages:
  low_masked: {images: 32}
  high_full: {images: 64}
evaluation: {images: 16, geneval: null, curve: {images: 0}}
runtime: {checkpoint_every_images: 32, log_every_images: 16, samples_every_images: 64}
"""


def small_project(folder):
    """A project that has run nothing yet, and the overlays that make its run a small one."""
    project = Project(folder)
    return project, (SMOKE, project.overlay("small.yaml", SMALL))


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A project whose small run has ended, undisturbed. Do not change it: `copy` gives another."""
    project, overlays = small_project(tmp_path_factory.mktemp("small") / "project")
    done = project.snakemake(overlays=overlays)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return project


def kill_all(driver):
    """-9 for the driver and all that it has started, as when a machine goes down."""
    processes = everything(driver)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    driver.wait(60)
    psutil.wait_procs(processes[1:], 60)


def kill_alone(driver):
    """-9 for the driver; returns the steps that live on."""
    orphans = [process for process in everything(driver) if is_step(process)]
    driver.kill()
    driver.wait(60)
    return orphans


def everything(driver):
    """The driver, which starts nothing from now on, and all that it has started."""
    root = psutil.Process(driver.pid)
    root.suspend()
    return [root, *root.children(recursive=True)]


def is_step(process):
    """Whether it is `python -m pipeline …`, and no process of such a one."""
    with suppress(psutil.NoSuchProcess):
        words = process.cmdline()
        return words[1:3] == ["-m", "pipeline"] and "python" in words[0]
    return False


def end_of(processes, seconds=300):
    """Whether orphans came to their end. None outlives its test."""
    _, alive = psutil.wait_procs(processes, seconds)
    for process in alive:
        process.kill()
    return not alive


def wait_for(driver, happened, seconds=600):
    """Fails if the driver ends before it."""
    ends = time.monotonic() + seconds
    while not happened():
        assert driver.poll() is None, "the run ended before it could be disturbed"
        assert time.monotonic() < ends, "what was waited for did not come"
        time.sleep(0.01)


def stamps(project, *parts):
    """When each result of some parts of the workflow was written, by path."""
    files = (file for part in parts for file in (project.folder / "results" / part).rglob("*") if file.is_file())
    return {str(file.relative_to(project.folder)): file.stat().st_mtime_ns for file in files}
