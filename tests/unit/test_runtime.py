"""Progress lines, stop requests and process records."""

import json
import os
import signal
import time

import psutil
import pytest
import torch

from pipeline.errors import UserError
from pipeline.runtime import StopRequest, minutes_left, pick_device, pick_precision, process_record, progress


def test_progress_in_a_log_is_lines_with_rate_and_time_left(capsys):
    with progress("encode", total=10) as bar:
        for _ in range(10):
            bar.update()
    error = capsys.readouterr().err
    assert "\r" not in error and error.endswith("\n")
    assert "encode: 100% 10/10 images" in error and "left" in error


@pytest.fixture
def handlers():
    names = ("SIGTERM", "SIGUSR1", "SIGINT")
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_is_a_reason_to_stop(handlers, name):
    stop = StopRequest()
    assert stop.reason() is None
    os.kill(os.getpid(), getattr(signal, name))
    assert stop.reason() == name


def test_a_deadline_is_a_reason_to_stop(handlers):
    assert StopRequest(deadline_minutes=60).reason() is None
    stop = StopRequest(deadline_minutes=0.0001)
    time.sleep(0.02)
    assert stop.reason() == "deadline"


def test_the_time_given_counts_from_the_start_of_the_process():
    lived = (time.time() - psutil.Process().create_time()) / 60
    assert lived > 0 and minutes_left(lived) == pytest.approx(0, abs=0.1)
    assert minutes_left(None) is None


def test_a_process_record_says_what_was_loaded(tmp_path):
    with process_record("encode", "a/b", tmp_path):
        pass
    record = json.loads((tmp_path / "encode-a-b.json").read_text())
    assert record["imports"][0] == "torch" and record["seconds"] > 0 and record["peak_memory_mb"] > 10


def test_a_clock_that_is_set_meanwhile_makes_no_negative_seconds(tmp_path, monkeypatch):
    now = time.time
    with process_record("collect", "here", tmp_path):
        monkeypatch.setattr(time, "time", lambda: now() - 3600)
    assert 0 <= json.loads((tmp_path / "collect-here.json").read_text())["seconds"] < 3000


def test_a_failed_step_leaves_no_record(tmp_path):
    with pytest.raises(ZeroDivisionError), process_record("encode", "a", tmp_path):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_of_processes_that_work_together_the_first_leaves_the_record(tmp_path, monkeypatch):
    for rank, records in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        with process_record("train", "a", tmp_path):
            pass
        assert len(list(tmp_path.iterdir())) == records


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_precision("auto", torch.device("cpu")) == torch.float32
    assert pick_precision("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert pick_precision("auto", torch.device("cuda")) == torch.bfloat16
    absent = next(d for d in ("mps", "cuda") if pick_device("auto").type != d)
    with pytest.raises(UserError, match=f"runtime.device: '{absent}' is not available"):
        pick_device(absent)
