"""A training job that dies inside the DAG: the same command finishes it, to the same bits."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

OVERLAY = """
stages: {high_full: {images: 1600}}
runtime: {checkpoint_every_images: 160, samples_every_images: 100000}
"""
TARGET = "results/train/high_full/summary.json"


def _start(project, overlay):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [
        "snakemake",
        "--cores",
        "2",
        "--rerun-incomplete",
        "--configfile",
        "tests/workflow/smoke.yaml",
        overlay,
        "--",
        TARGET,
    ]
    return subprocess.Popen(
        command, cwd=project.folder, env={**os.environ, "PATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _first_checkpoint(project, driver):
    while driver.poll() is None:
        found = list((project.folder / "results/work/train/high_full").glob("*/000000000???/state.json"))
        if any(int(file.parent.name) >= 160 for file in found):
            return
        time.sleep(0.02)
    raise AssertionError("the run ended before its first checkpoint")


def _kill_trainer(driver):
    trainers = [child for child in psutil.Process(driver.pid).children(recursive=True) if "train" in child.cmdline()[1:4]]
    assert trainers
    for trainer in trainers:
        trainer.kill()


def test_a_killed_training_job_goes_on_to_the_same_weights(clone, finished, tmp_path):
    overlay = clone.overlay("longer.yaml", OVERLAY)
    driver = _start(clone, overlay)
    _first_checkpoint(clone, driver)
    _kill_trainer(driver)
    assert driver.wait(60) != 0
    assert not (clone.folder / TARGET).exists()
    assert _start(clone, overlay).wait(400) == 0
    interrupted = (clone.folder / "results/train/high_full/ema.safetensors").read_bytes()

    work = clone.folder / "results/work/train/high_full"
    work.rename(tmp_path / "set-aside")
    (clone.folder / TARGET).unlink()
    assert _start(clone, overlay).wait(400) == 0
    assert (clone.folder / "results/train/high_full/ema.safetensors").read_bytes() == interrupted
