"""A clock that somebody sets, an hour forward or back, between steps and within them."""

import os
import time

import psutil

from pipeline.artifacts import read_json
from tests.chain import files

HOUR = 3600.0
STEPS = ("collect data/scenes/", "encode encoded/scenes/", "manifest manifests/low", "train train/low", "evaluate", "card")


def jumps():
    """In the process of a step: every half a second somebody sets the clock. When a process began is told by it too."""
    now, began = time.time, psutil.Process.create_time

    def ahead():
        return (0.0, HOUR, -HOUR)[int(2 * time.monotonic()) % 3]

    time.time = lambda: now() + ahead()
    psutil.Process.create_time = lambda self: began(self) + ahead()


def test_steps_give_the_same_bytes_and_no_negative_seconds(chain, whole):
    folder = chain.copy(whole, "clock")
    for number, path in enumerate(sorted((folder / "results").rglob("*"))):
        later = time.time() + (24 if number % 2 else -24) * HOUR
        os.utime(path, (later, later))
    for step in [step for step in chain.steps if step.name.startswith(STEPS)]:
        chain.succeeds(step, folder, jumps)
    assert files(folder) == files(whole)
    records = [read_json(file) for file in (folder / "results/work/processes").glob("*.json")]
    assert len(records) > 10 and all(0 <= record["seconds"] < HOUR / 2 for record in records)
    seconds = read_json(folder / "results/train/low_masked/summary.json")["seconds"]
    assert all(0 <= value < HOUR / 2 for value in seconds.values())


def test_training_goes_on_from_the_newest_images_whatever_the_times_of_its_checkpoints(trainer, slice_of, toy):
    slice_ = slice_of(images=240)
    trainer.run(slice_, toy, deadline=0.0, expect=1, checkpoint_every_images=24, keep_checkpoints=3)
    trainer.run(slice_, toy, deadline=0.0, expect=1, checkpoint_every_images=24, keep_checkpoints=3)
    first, second = trainer.checkpoints()
    os.utime(second, (0, 0))
    os.utime(first, (2**31, 2**31))
    trainer.run(slice_, toy, deadline=0.0, expect=1, checkpoint_every_images=24, keep_checkpoints=3)
    assert trainer.newest() == 72
