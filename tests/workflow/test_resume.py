"""A training job that dies inside the DAG: the same command finishes it, to the same bits."""

import time

import psutil

OVERLAY = """
stages: {high_full: {images: 1600}}
runtime: {checkpoint_every_images: 160, samples_every_images: 100000}
"""
TARGET = "results/train/high_full/summary.json"


def _start(project):
    overlays = ("tests/workflow/smoke.yaml", project.overlay("longer.yaml", OVERLAY))
    return project.start("--rerun-incomplete", "--", TARGET, overlays=overlays)


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
    driver = _start(clone)
    _first_checkpoint(clone, driver)
    _kill_trainer(driver)
    assert driver.wait(60) != 0
    assert not (clone.folder / TARGET).exists()
    assert _start(clone).wait(400) == 0
    interrupted = (clone.folder / "results/train/high_full/ema.safetensors").read_bytes()

    work = clone.folder / "results/work/train/high_full"
    work.rename(tmp_path / "set-aside")
    (clone.folder / TARGET).unlink()
    assert _start(clone).wait(400) == 0
    assert (clone.folder / "results/train/high_full/ema.safetensors").read_bytes() == interrupted
