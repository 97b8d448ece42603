"""The bench of the training step: what it prints, what it counts, and that torch is all it needs."""

import json
import subprocess
import sys

import pytest
import yaml

from pipeline.bench.matmuls import matmul_shapes
from pipeline.bench.train_step import PAPER, main, project
from pipeline.fingerprint import ROOT
from pipeline.model import PRESETS, at_resolution, training_flops

SMALL = ["--arch", "small", "--px", "32", "--batch", "4", "--steps", "1", "--device", "cpu"]
# Everything that the lock holds beside torch and what torch itself imports.
NOT_THERE = ["pydantic", "typer", "yaml", "accelerate", "pyarrow", "pandas", "safetensors", "transformers", "diffusers", "psutil"]


@pytest.fixture
def measured(capsys):
    """`measured(option, …)`: what the bench prints."""

    def run(*options):
        assert main([*SMALL, *options]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_it_prints_speed_shares_memory_and_where_the_time_goes(measured):
    found = measured("--microbatch", "2")
    assert found["batch"] == 4 and found["microbatch"] == 2 and found["precision"] == "float32"
    flops = training_flops(at_resolution(PRESETS["small"], 4), 0.75)
    assert found["tflops"] == pytest.approx(found["images_per_second"] * flops / 1e12, abs=1e-3)
    assert found["share_of_peak"]["datasheet"] is None and found["share_of_peak"]["large_matmul"]["tflops"] > 0
    assert set(found["time"]) == {"mixer", "backbone", "optimiser", "rest"}
    assert sum(found["time"].values()) == pytest.approx(1, abs=1e-3) and min(found["time"].values()) > 0
    assert found["peak_memory_gb"] > 0 and found["command"].endswith("--microbatch 2")


def test_every_optimisation_has_a_switch(measured):
    assert measured("--with", "joint_text", "--without", "keep_freed", "fused_adamw")["switches"] == {
        "compile": False,
        "fused_adamw": False,
        "foreach_ema": True,
        "joint_text": True,
        "attention": "auto",
        "keep_freed": False,
    }
    assert measured("--attention", "flash")["switches"]["attention"] == "flash"


def test_the_recipe_is_that_of_the_preset():
    preset = yaml.safe_load((ROOT / "workflow/presets/paper.yaml").read_text())
    stages = [preset["stages"][name] for name in preset["schedule"]]
    assert [s.name for s in PAPER] == preset["schedule"]
    assert [(s.px, s.mask, s.images) for s in PAPER] == [(s["px"], s["mask_ratio"], s["images"]) for s in stages]


def test_at_full_peak_the_recipe_takes_92_hours():
    stages = []
    for stage in PAPER:
        flops = training_flops(at_resolution(PRESETS["xl2"], stage.px // 8), stage.mask)
        stages.append({"images": stage.images, "images_per_second": 989e12 / flops, "tflops": 989.0})
    found = project(stages)
    assert found["training_flops"] == pytest.approx(3.287e20, rel=1e-3)
    assert found["device_hours"] == pytest.approx(92.3, abs=0.1)
    assert found["dollars_at_price_an_hour"] == {"2.00": 185, "2.60": 240, "3.75": 346}


@pytest.mark.parametrize("mask", [0.0, 0.75])
def test_own_matmuls_are_those_of_the_count(mask):
    """All but attention, the adaptive norms and what lies outside of the blocks."""
    config = PRESETS["xl2"]
    counted = sum(2 * n * many * m * k * c for (many, m, k, c), n in matmul_shapes(config, 1, mask).items())
    assert 0.85 < 3 * counted / training_flops(config, mask) < 1


def test_torch_is_all_it_needs():
    script = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({NOT_THERE}))
sys.argv[1:] = {["bench", "train-step", *SMALL]}
runpy.run_module("pipeline", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["arch"] == "small"


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--help"], 0), (["nothing"], 2)])
def test_without_a_name_it_lists_the_benchmarks(arguments, code):
    done = subprocess.run([sys.executable, "-m", "pipeline", "bench", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and "bench train-step" in done.stderr and "bench loader" in done.stderr
