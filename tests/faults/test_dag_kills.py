"""The whole workflow killed at moments over all of it, and the same command each time, against a run that nobody killed."""

import json
import random
import re
import time

import pytest

from tests.drivers import end_of, kill_all, kill_alone, small_project, stamps, wait_for
from tests.training import TIMES

KILLS = 5
# What a clock or a machine says. Everything else must be equal in every bit, but scores: sums of a library whose threads
# take turns.
CLOCKS = {*TIMES, "cost", "dollars", "device_hours", "tflops", "plan", "processes", "processes_by_step", "processes_with_torch"}
DIGITS = 12
BEGUN = re.compile(r"\..+\.\d+\.part")  # as artifacts.atomic names them
NOT_COMPARED = ("logs", "benchmarks", "work", "report.html")  # the page shows times and curves of speed
COST = re.compile(r"^[\d.]+ device-hours of training.*|[\d.]+ \|$", re.M)  # in the model's card
SHARDS = ("data", "captions", "encoded", "latents", "text")


@pytest.mark.timeout(2400)  # on a machine that has much else to do
def test_killed_five_times_the_run_ends_with_the_same_bits(small, tmp_path):
    project, overlays = small_project(tmp_path / "project")
    chance, jobs, orphans = random.Random(11), len(records(small)), []
    for number in range(KILLS):
        driver = project.start(overlays=overlays)
        moment = chance.uniform(number, number + 1) * jobs / KILLS
        wait_for(driver, lambda at=int(moment): len(records(project)) >= at)
        time.sleep(chance.uniform(0, 3))
        whole = stamps(project, *SHARDS)
        if number % 2:
            orphans += kill_alone(driver)  # its steps go on, while the next driver starts them again
        else:
            kill_all(driver)
        assert stamps(project, *SHARDS).keys() >= whole.keys()
    done = project.snakemake(overlays=overlays)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert end_of(orphans, 0)
    again = project.snakemake(overlays=overlays)
    assert "Nothing to be done" in again.stdout + again.stderr
    one, two = results(project), results(small)
    assert one.keys() == two.keys() and {name for name in one if one[name] != two[name]} == set()


def records(project):
    """Of steps that came to their end."""
    return list((project.folder / "results/work/processes").glob("*.json"))


def results(project):
    """What each file says, by path, without times. What a killed process had begun to write is nobody's result."""
    folder = project.folder / "results"
    files = (file for file in folder.rglob("*") if file.is_file() and file.relative_to(folder).parts[0] not in NOT_COMPARED)
    files = (file for file in files if not BEGUN.fullmatch(file.name))
    return {str(file.relative_to(folder)): content(file) for file in files}


def content(file):
    if file.suffix == ".jsonl":
        return [without_clocks(json.loads(line)) for line in file.read_text().splitlines()]
    if file.suffix == ".md":
        return COST.sub("", file.read_text())
    return without_clocks(json.loads(file.read_text())) if file.suffix == ".json" else file.read_bytes()


def without_clocks(value):
    if isinstance(value, dict):
        return {key: without_clocks(item) for key, item in value.items() if key not in CLOCKS}
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    return [without_clocks(item) for item in value] if isinstance(value, list) else value
