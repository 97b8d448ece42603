"""What `plan --measure` finds is what a plan reads."""

import json

import pytest
import torch

from pipeline.bench import plan
from pipeline.config import validate
from pipeline.errors import UserError
from pipeline.plan.rates import NUMBERS, rates


def config(**sections):
    values = {
        "sources": {
            "scenes": {"kind": "synthetic", "count": 64, "store_side": 32, "min_side": 16, "caption": "fill"},
            "held": {"kind": "synthetic", "count": 8, "role": "evaluation"},
        },
        "model": {"dim": 32, "depth": 2, "head_dim": 8, "mixer_depth": 1},
        "stages": {"a": {"px": 32, "mask_ratio": 0.5, "images": 64, "batch_images": 16},
                   "b": {"px": 32, "mask_ratio": 0.0, "images": 64, "batch_images": 8}},
        "schedule": ["a", "b"],
        "evaluation": {"source": "held"},
        "runtime": {"device": "cpu", "caption_batch": 4},
    }  # fmt: skip
    return validate({**values, **sections})


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "SECONDS", 0.05)
    monkeypatch.setattr(plan, "HEAVY", plan.LIGHT)
    monkeypatch.chdir(tmp_path)


def test_every_part_is_measured_and_a_plan_reckons_with_it():
    plan.run(config())
    value = json.loads(plan.MEASURED.read_text())
    assert set(value["numbers"]) == set(NUMBERS) and all(number > 0 for number in value["numbers"].values())
    assert set(value["training_flops_per_second"]) == {"a", "b"} and not value["not_measured"]
    assert set(value["disk_megabytes_per_second"]) == {"write", "read"}
    assert {"device", "date", "commit", "command", "cores", "load", "torch"} <= set(value["machine"])
    known = rates(config())
    assert known.device == "measured here" and known.training["a"].value == value["training_flops_per_second"]["a"]
    assert known.captions.value == value["numbers"]["captions_per_second"]
    assert not list(plan.MEASURED.parent.glob("tmp*"))


def test_a_model_that_is_not_to_be_had_is_named_and_the_rest_is_measured():
    models = {"vae": "nowhere", "captioner": "nowhere_else"}
    value = plan.Measurement(config(models=models), torch.device("cpu")).all()
    assert "nowhere" in value["not_measured"]["encoding"] and "nowhere_else" in value["not_measured"]["captioning"]
    assert {"collects_per_second", "train_share"} <= set(value["numbers"]) and "encodes_per_second" not in value["numbers"]


def test_a_network_that_memory_does_not_hold_is_not_tried(monkeypatch):
    monkeypatch.setattr(plan, "BYTES_A_WEIGHT", 10**12)
    measurement = plan.Measurement(config(), torch.device("cpu"))
    assert measurement._training("a", 1e12) is None and "memory" in measurement.missing["training of a"]


def test_a_batch_is_the_runs_own_unless_that_takes_long():
    assert plan._fitting(64, flops_an_image=1e6, flops=1e12) == 64
    assert plan._fitting(64, flops_an_image=1e11, flops=3e12) == 10
    assert plan._fitting(64, flops_an_image=1e13, flops=3e12) == 1


def test_a_run_on_gpus_is_not_measured_without_one():
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(UserError, match=r"runtime\.gpus: 2, and no GPU was found here"):
        plan.run(config(runtime={"gpus": 2}))
    assert not plan.MEASURED.exists()
