"""What runs and what failed: by locks that real processes hold, and by logs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.config import load
from pipeline.errors import UserError
from pipeline.fingerprint import ROOT
from pipeline.lock import DRIVER, Holder, Lock
from pipeline.status.activity import LOCKS, failed, running
from pipeline.status.command import rows, run
from pipeline.status.dry_run import Job
from pipeline.verify.command import run as verify

HOLD = """
import sys, time
from pathlib import Path
from pipeline.lock import Holder, Lock
lock = Lock(Path(sys.argv[1]))
assert lock.take()
lock.write(Holder())
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return load(ROOT / "config.yaml")


@pytest.fixture
def hold():
    """hold(PATH): a process that holds a lock."""
    started = []

    def start(path):
        command = [sys.executable, "-c", HOLD, str(path.absolute())]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_training_that_runs_tells_how_far_it_is(here, hold):
    process = hold(LOCKS / "train-low_full.lock")
    lines = [{"images": 1280, "images_per_second": 100.0}, {"images": 1280, "validation_loss": 1.0}]
    _write(Path("results/work/train/low_full/0123/metrics.jsonl"), "\n".join(map(json.dumps, lines)) + '\n{"images": 13')
    (found,) = running(here)
    assert found.what == "train-low_full" and f"process {process.pid} on " in found.holder
    assert found.progress == "1,280 of 44,800 images, 100 a second, 7:15 left"


def test_another_step_that_runs_tells_the_last_line_of_its_log(here, hold):
    hold(LOCKS / "encode-scenes-00000.lock")
    _write(Path("results/logs/encode/scenes-00000.log"), "text 00000: 50%\nlatents 00000:  45% 30/64 images\n\n")
    assert [(each.what, each.progress) for each in running(here)] == [("encode-scenes-00000", "latents 00000:  45% 30/64 images")]


def test_the_driver_tells_how_many_jobs_are_done(here, hold):
    hold(DRIVER)
    lines = "Finished jobid: 3\n3 of 25 steps (12%) done\nSelect jobs to execute...\n"
    _write(Path(".snakemake/log/2026-01-02T0.snakemake.log"), lines)
    _write(Path(".snakemake/log/2026-01-01T0.snakemake.log"), "9 of 9 steps (100%) done\n")
    assert [(each.what, each.progress) for each in running(here)] == [("driver", "3 of 25 steps (12%) done")]


def test_a_killed_step_does_not_run_and_its_lock_says_so_to_nobody(here, hold):
    process = hold(LOCKS / "train-low_full.lock")
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:  # dead, and its parent has not asked yet
        time.sleep(0.01)
    assert running(here) == []
    process.wait()
    assert running(here) == []


def test_an_ended_step_does_not_run(here):
    lock = Lock(LOCKS / "train-low_full.lock")
    assert lock.take()
    lock.write(Holder(ended=True))
    assert running(here) == []
    lock.release()


def test_a_process_number_that_went_to_another_process_is_none(here):
    lock = Lock(LOCKS / "train-low_full.lock")
    assert lock.take()
    lock.write(Holder(pid=os.getppid(), since="2020-01-01 00:00:00+00:00"))
    lock.release()
    assert running(here) == []


def test_on_another_host_the_lock_itself_is_asked(here):
    lock = Lock(LOCKS / "train-low_full.lock")
    assert lock.take()
    lock.write(Holder(host="elsewhere"))
    assert [each.what for each in running(here)] == ["train-low_full"]
    lock.release()
    assert running(here) == []


JOB = Job("encode", ("out.json",), "results/logs/encode/scenes-00000.log", "results/benchmarks/x.tsv")


@pytest.mark.parametrize(
    ("log", "benchmark", "expected"),
    [
        ("50%\nerror: no room\n", None, ["error: no room"]),
        ("50%\n", None, ["50%"]),  # killed
        ("", None, ["stopped without a word"]),
        ("100%\n", "after", []),  # ended well; its output was removed later
        ("50%\n", "before", ["50%"]),
        (None, None, []),  # never started
    ],
)
def test_a_failed_job_is_one_whose_last_attempt_left_nothing(here, log, benchmark, expected):
    if log is not None:
        _write(Path(JOB.log), log)
    if benchmark:
        _write(Path(JOB.benchmark), "s\n")
        os.utime(JOB.benchmark, (time.time() + (10 if benchmark == "after" else -10),) * 2)
    assert [line for _, line in failed([JOB], set())] == expected
    assert not list(failed([JOB], {"encode-scenes-00000"}))
    errors = [line for line in expected if line.startswith("error:")]
    assert [line for _, line in failed([JOB], {"driver"})] == errors


def test_rows_count_every_job_once(here):
    def job(shard, of="scenes", **more):
        log = f"results/logs/encode/{of}-{shard}.log"
        return Job("encode", (f"{of}{shard}.json",), log, wildcards={"source": of, "shard": shard}, **more)

    for shard in ("00000", "00003"):
        _write(Path(f"scenes{shard}.json"), "{}")
    every = [job(f"{n:05d}") for n in range(5)] + [job("00000", "other")]
    pending = [job(f"{n:05d}", reason=f"Missing output files: a/{n:05d}.json") for n in range(1, 5)]
    first, other = rows(every, pending, {"encode-scenes-00001"}, {("scenes00002.json",)})
    assert (first.jobs, first.done, first.running, first.failed, first.stale, first.missing) == (5, 1, 1, 1, 1, 1)
    assert first.why == {"missing: a/*.json": 2}
    assert (other.of, other.jobs, other.done) == ("other", 1, 1)


def test_where_nothing_was_run_it_says_so(here, capsys):
    (Path.cwd() / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    run([], as_json=False)
    assert capsys.readouterr().out.startswith("Nothing was run yet.")
    run([], as_json=True)
    assert json.loads(capsys.readouterr().out) == {"rows": [], "failed": [], "running": []}


def test_nothing_is_repaired_under_a_run(here, hold):
    process = hold(DRIVER)
    _write(Path("results/run_config.json"), "{}")
    _write(Path("results/x.json"), "{")
    with pytest.raises(UserError, match=f"a run is going on here, of process {process.pid}"):
        verify(Path("results"), repair=True)
    assert Path("results/x.json").exists()
