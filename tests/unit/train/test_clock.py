import time

import pytest
import torch

from pipeline.train.clock import Clock


def test_time_is_counted_by_activity_and_over_runs():
    clock = Clock(torch.device("cpu"))
    clock.go_on_from({"training": 100.0, "samples": 7.0})
    clock.switch("training")
    with clock.doing("samples"):
        time.sleep(0.05)
    time.sleep(0.02)
    seconds = clock.so_far()
    assert seconds["samples"] == pytest.approx(7.05, abs=0.04) and seconds["training"] == pytest.approx(100.02, abs=0.04)
    assert seconds["start"] > 0  # since the process began


def test_activities_add_up_to_the_life_of_the_process():
    clock = Clock(torch.device("cpu"))
    before = sum(clock.so_far().values())
    clock.switch("training")
    time.sleep(0.03)
    assert sum(clock.so_far().values()) - before == pytest.approx(0.03, abs=0.03)
