"""Two drivers at once, and drivers that are killed while their training goes on without them."""

import json
import re
import subprocess
from contextlib import suppress

import psutil
import pytest

from tests.drivers import SMOKE, end_of, is_step, kill_all, kill_alone, stamps, wait_for
from tests.training import json_lines, same, weights

LONGER = """
stages: {high_full: {images: 480}}
runtime: {checkpoint_every_images: 80, samples_every_images: 100000, log_every_images: 16}
"""
STAGE = "high_full"
TARGET = f"results/train/{STAGE}/summary.json"
DATA = ("embedded", "data", "captions", "encoded", "latents", "text", "manifests")


class Run:
    """The training of the last stage in a project that has done the rest."""

    def __init__(self, project):
        self.project = project
        self._overlays = (SMOKE, "small.yaml", project.overlay("longer.yaml", LONGER))

    def start(self):
        return self.project.start("--", TARGET, overlays=self._overlays)

    def again(self, *arguments) -> subprocess.CompletedProcess[str]:
        """The same command to its end."""
        return self.project.snakemake(*arguments, "--", TARGET, overlays=self._overlays)

    def trains(self):
        """Whether a checkpoint is there; those of the small run are at other images."""
        found = self._work.glob("*/000000000???/state.json")
        return any(int(file.parent.name) in (80, 160, 240, 320, 400) for file in found)

    @property
    def _work(self):
        return self.project.folder / "results/work/train" / STAGE

    @property
    def out(self):
        return self.project.folder / "results/train" / STAGE

    def trained_once(self):
        """Whether the metrics have every line once, which two writers would not leave."""
        (file,) = {file for file in self._work.glob("*/metrics.jsonl") if len(json_lines(file)) > 20}
        images = [line["images"] for line in json_lines(file) if "loss" in line]
        return images == sorted(set(images))

    def log(self):
        """Snakemake removes it when it starts the step again."""
        with suppress(FileNotFoundError):
            return (self.project.folder / f"results/logs/train/{STAGE}.log").read_text()
        return ""

    def holder(self):
        return json.loads((self.project.folder / f"results/work/locks/train-{STAGE}.lock").read_text())


@pytest.fixture
def run(small, tmp_path):
    return Run(small.copy(tmp_path / "project"))


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory):
    """Outputs of the training when nobody disturbs it."""
    run = Run(small.copy(tmp_path_factory.mktemp("undisturbed") / "project"))
    done = run.again()
    assert done.returncode == 0, done.stdout + done.stderr
    return weights(run.out)


@pytest.fixture
def training(run):
    """A driver, and the training that it has started, which is held in the middle."""
    driver = run.start()
    wait_for(driver, run.trains)
    (step,) = [process for process in psutil.Process(driver.pid).children(recursive=True) if is_step(process)]
    step.suspend()
    yield driver, step
    end_of([step], 0)


@pytest.mark.timeout(1500)  # on a machine that has much else to do
def test_a_second_driver_names_the_first_and_changes_nothing(run, training, undisturbed):
    driver, step = training
    before = stamps(run.project, *DATA)
    second = run.again("--forcerun", "collect")
    assert second.returncode == 1 and stamps(run.project, *DATA) == before
    (told,) = [line for line in second.stderr.splitlines() if line.startswith("error: ")]
    assert f"process {driver.pid} on " in told and re.search(r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", told), told
    assert "Traceback" not in second.stderr and run.again("--dry-run").returncode == 0
    step.resume()
    assert driver.wait(400) == 0
    assert same(weights(run.out), undisturbed) and run.trained_once()


@pytest.mark.timeout(1500)
def test_a_training_that_outlives_its_driver_is_waited_for(run, training, undisturbed):
    driver, orphan = training
    before = stamps(run.project, *DATA)
    kill_alone(driver)
    second = run.start()
    wait_for(second, lambda: f"process {orphan.pid} on " in run.log())
    orphan.resume()
    assert second.wait(400) == 0 and "nothing is left to do" in run.log()
    assert not orphan.is_running() and run.holder()["pid"] == orphan.pid  # nobody has written after it
    assert same(weights(run.out), undisturbed) and run.trained_once()
    assert stamps(run.project, *DATA) == before
    third = run.again()
    assert "Nothing to be done" in third.stdout + third.stderr


@pytest.mark.timeout(1500)
def test_an_orphan_that_dies_is_taken_over_from(run, training, undisturbed):
    driver, orphan = training
    kill_alone(driver)
    second = run.start()
    wait_for(second, lambda: f"process {orphan.pid} on " in run.log())
    orphan.kill()
    assert second.wait(400) == 0 and run.holder()["pid"] != orphan.pid
    assert same(weights(run.out), undisturbed) and run.trained_once()


@pytest.mark.timeout(1500)
def test_after_all_processes_are_killed_the_same_command_goes_on(run, training, undisturbed):
    kill_all(training[0])
    again = run.again()
    assert again.returncode == 0, again.stdout + again.stderr
    assert same(weights(run.out), undisturbed) and run.trained_once()
