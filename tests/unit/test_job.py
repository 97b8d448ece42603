"""What surrounds a step: who waits for whom, and when nothing is left to do."""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from pipeline.artifacts import write_json
from pipeline.cli.job import command_digest, job

OUT = Path("results/data/toys/00000.json")
LAUNCH = {"MASTER_ADDR": "here", "MASTER_PORT": "5", "TORCHELASTIC_RUN_ID": "one"}


def step(arguments, environment, folder, log):
    """Writes two files, each when it is told to."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["pipeline", *arguments]
    out = Path(arguments[-1])
    with job("collect", "toys-00000", out):
        print("at work", flush=True)
        for file in (out.with_suffix(".first"), out):
            while not log.with_suffix(file.suffix).exists():
                time.sleep(0.005)
            if environment.get("RANK", "0") == "0":
                write_json(file, os.getpid())


class Step:
    def __init__(self, context, folder, number, arguments, environment):
        self._log = folder / f"step{number}.log"
        arguments = ("--config", "{}", *arguments)
        self._process = context.Process(target=step, args=(arguments, environment, folder, self._log))
        self._process.start()
        self.pid = self._process.pid

    def says(self, words):
        ends = time.monotonic() + 60
        while words not in self.told():
            assert self.lives() and time.monotonic() < ends, self.told()
            time.sleep(0.005)

    def told(self):
        return self._log.read_text() if self._log.exists() else ""

    def works(self):
        self.says("at work\n")

    def waits_for(self, other):
        self.says(f"collect-toys-00000: process {other.pid} on ")

    def writes(self, *suffixes):
        for suffix in suffixes or (".first", ".json"):
            self._log.with_suffix(suffix).touch()

    def lives(self):
        return self._process.is_alive()

    def ends(self, well=True):
        self._process.join(60)
        assert (self._process.exitcode == 0) is well, self.told()

    def send(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()
        self._process.join()


class Steps:
    def __init__(self, context, folder):
        self._context, self.folder, self.started = context, folder, []

    def start(self, *more, out=OUT, **environment):
        self.started.append(Step(self._context, self.folder, len(self.started), (*more, "--out", str(out)), environment))
        return self.started[-1]

    def written_by(self, name=OUT.name):
        return json.loads((self.folder / OUT).with_name(name).read_text())


@pytest.fixture(scope="module")
def context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.cli", __name__])
    return context


@pytest.fixture
def steps(context, tmp_path):
    steps = Steps(context, tmp_path)
    yield steps
    for one in steps.started:
        one.kill()


@pytest.fixture
def first(steps):
    one = steps.start()
    one.works()
    return one


def test_nothing_is_left_to_do_where_another_process_has_just_done_the_same(steps, first):
    others = [steps.start(), steps.start()]
    for other in others:
        other.waits_for(first)
    first.writes()
    for one in (first, *others):
        one.ends()
    assert all("nothing is left to do" in other.told() and "at work" not in other.told() for other in others)
    assert steps.written_by() == first.pid
    steps.start().works()  # which waited for nobody: whoever starts it wants it to run


def test_after_one_that_died_the_step_runs(steps, first):
    second = steps.start()
    second.waits_for(first)
    first.writes(".first")
    first.kill()
    second.works()
    second.writes()
    second.ends()
    assert steps.written_by() == second.pid


def test_after_one_that_failed_the_step_runs(steps, first):
    second = steps.start()
    second.waits_for(first)
    (steps.folder / "results/data").write_text("no folder")
    first.writes()
    first.ends(well=False)
    second.works()


def test_what_was_removed_while_the_other_one_wrote_is_made_again(steps, first):
    """Snakemake removes declared outputs before it starts a step."""
    first.writes(".first")
    half = steps.folder / OUT.with_suffix(".first")
    while not half.exists():
        time.sleep(0.005)
    half.unlink()
    second = steps.start()
    second.waits_for(first)
    first.writes()
    first.ends()
    second.works()
    second.writes()
    second.ends()
    assert steps.written_by("00000.first") == steps.written_by() == second.pid


@pytest.mark.parametrize("change", ["option", "input"])
def test_after_one_that_did_something_else_the_step_runs(steps, change):
    given = steps.folder / "images.json"
    given.write_text("1")
    first = steps.start("--images", "images.json")
    first.works()
    if change == "input":
        given.write_text("2")
    second = steps.start("--images", "images.json", *(["--more"] if change == "option" else []))
    second.waits_for(first)
    first.writes()
    first.ends()
    second.works()


def test_results_elsewhere_are_others(steps, first):
    others = [steps.start(out=out) for out in ("elsewhere/00000.json", steps.folder / "third" / "00000.json")]
    for other in others:
        other.works()
    steps.start(out="elsewhere/../elsewhere/00000.json").waits_for(others[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_waiting_ends_with_a_signal(steps, first, number):
    second = steps.start()
    second.waits_for(first)
    second.send(number)
    second.ends(well=False)
    assert first.lives()


def test_of_processes_that_train_together_the_first_waits_for_all(steps, first):
    ranks = [steps.start(RANK=str(rank), **LAUNCH) for rank in (0, 1)]
    ranks[0].waits_for(first)
    other_launch = steps.start(RANK="1", **LAUNCH | {"MASTER_PORT": "6"})
    first.kill()
    for rank in ranks:
        rank.works()
        rank.writes()
    for rank in ranks:
        rank.ends()
    assert other_launch.lives() and other_launch.told() == ""  # its first process has not come


def test_of_processes_that_train_together_none_works_if_nothing_is_left_to_do(steps, first):
    ranks = [steps.start(RANK=str(rank), **LAUNCH) for rank in (0, 1)]
    ranks[0].waits_for(first)
    first.writes()
    for rank in ranks:
        rank.ends()
        assert "at work" not in rank.told()


def test_a_command_is_the_same_with_the_same_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage").mkdir()
    names = ("out.json", "a.json", "b.json", "stage/summary.json")
    for name in names:
        (tmp_path / name).write_text("1")
    words = ["--config", "{" + "x" * 5000, "--manifest=a.json", "--parent", "stage", "--images", "b.json", "--out", "out.json"]
    digests = [command_digest(words)]
    for name in names:
        (tmp_path / name).write_text("2")
        digests.append(command_digest(words))
    digests.append(command_digest([*words, "--more"]))
    assert digests[0] == digests[1] and len(set(digests)) == 5
