from types import SimpleNamespace

import pytest
import torch

from pipeline.config.steps import Settings
from pipeline.diffusion import EDM
from pipeline.engine.objective import Objective
from pipeline.engine.peak import Peak
from pipeline.engine.recipe import Recipe
from pipeline.model import PRESETS, training_flops
from pipeline.train.speed import Speedometer

LINE = {"images_per_second": 1600.0, "loss": 0.12345, "learning_rate": 8e-5, "share_of_peak": 0.4512}


@pytest.fixture
def speed():
    """`speed(devices, price)`: of devices with a peak of 1 TFLOP/s, training the small preset with a mask."""

    def make(devices=1, price=2.0):
        objective = Objective(EDM(), PRESETS["small"], Recipe("toy", images=1000, mask_ratio=0.75))
        processes = SimpleNamespace(device=torch.device("cpu"), count=devices)
        flops = training_flops(objective.config, 0.75)
        made = Speedometer(objective, Settings(report={"dollars_per_hour": price}), processes, flops)
        assert made.peak.source == "measured" and made.peak.flops > 0
        made.peak = Peak(1e12, "datasheet")
        return made

    return make


def test_the_share_of_peak_is_that_of_all_devices(speed):
    flops = training_flops(PRESETS["small"], 0.75)
    assert speed(1).share_of_peak(0.5e12 / flops) == 0.5
    assert speed(4).share_of_peak(0.5e12 / flops) == 0.125
    assert speed().share_of_peak(0.0) == 0.0


def test_what_is_left_is_paid_for_all_devices(speed):
    assert speed(8).line(LINE, 1600 * 3600) == "loss 0.1235, lr 8e-05, 45.1% of peak, $16.00 left"
    assert speed(8).line(LINE, 1600 * 3600 * 1000).endswith("$16,000.00 left")
    assert speed().line(LINE, 1).endswith("under $0.01 left")
    assert speed().line(LINE, 0).endswith("$0.00 left")


def test_what_is_not_known_is_not_made_up(speed):
    assert speed(price=0.0).line(LINE, 100) == "loss 0.1235, lr 8e-05, 45.1% of peak"
    slow = LINE | {"loss": None, "images_per_second": 0.0, "share_of_peak": 0.0}
    assert speed().line(slow, 100) == "loss -, lr 8e-05, 0.0% of peak"


def test_the_plan_is_45_percent_of_peak(speed):
    images = round(3600 * 0.45e12 / speed().flops)  # an hour's
    assert speed().plan(images) == {"share_of_peak": 0.45, "device_hours": 1.0, "dollars": 2.0}
    assert speed(8).plan(images) == speed().plan(images)  # more devices take less time, not fewer device-hours
