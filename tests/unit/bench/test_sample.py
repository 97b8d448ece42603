"""The bench of sampling: what it prints, what it counts, and that torch is all it needs."""

import json
import subprocess
import sys

import pytest

from pipeline.bench.sample import main
from pipeline.fingerprint import ROOT
from pipeline.model import PRESETS, at_resolution, forward_flops, text_flops
from tests.unit.bench.test_train_step import NOT_THERE

SMALL = ["--arch", "small", "--px", "32", "--steps", "4", "--device", "cpu"]


@pytest.fixture
def measured(capsys):
    """`measured(option, …)`: what the bench prints."""

    def run(*options):
        assert main([*SMALL, *options]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(
    ("options", "calls", "rows", "texts"),
    [
        ([], 7, 42, 6),
        (["--sampler", "dpmpp_2m"], 4, 24, 6),
        (["--sampler", "euler", "--guidance", "1"], 4, 12, 3),
        (["--sampler", "euler", "--interval", "0.1", "50"], 4, 3 * 6, 9),  # levels 80, 9.7, 0.5, 0.002: two of them inside
    ],
)
def test_it_counts_the_calls_that_were_made(measured, options, calls, rows, texts):
    found = measured("--batch", "3", *options)
    assert (found["batch"], found["network_calls"], found["images_of_all_calls"]) == (3, calls, rows)
    config = at_resolution(PRESETS["small"], 4)
    flops = rows * (forward_flops(config) - text_flops(config)) + texts * text_flops(config)
    assert found["tflop_an_image"] == pytest.approx(flops / 3 / 1e12, abs=1e-5)
    assert found["tflops"] == pytest.approx(found["images_per_second"] * flops / 3 / 1e12, abs=1e-3)
    assert found["seconds_a_call"] == pytest.approx(3 / found["images_per_second"] / calls, rel=0.05)
    assert found["share_of_peak"]["datasheet"] is None and found["share_of_peak"]["large_matmul"] > 0
    assert found["peak_memory_gb"] > 0 and found["precision"] == "float32" and found["compiled"] is False


def test_it_finds_a_batch_by_itself(measured):
    assert measured("--batch", "auto")["batch"] in {1, 2, 4, 8, 16, 32}


def test_torch_is_all_it_needs():
    script = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({NOT_THERE}))
sys.argv[1:] = {["bench", "sample", "--batch", "1", *SMALL]}
runpy.run_module("pipeline", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sampler"] == "heun"
