"""A run that is killed thirty times, at any moment, against one that never was."""

import random
import signal
import time

import pytest

from pipeline.artifacts import read_json
from tests.training import EXPERTS, TRAINED, json_lines, metrics, poisoned, rows_at, same, wait_until, weights, write_manifest

IMAGES, BATCH, SNAPSHOT = 2160, 24, 144
RULES = {"snapshot_every_images": SNAPSHOT, "log_every_images": 72}
CHECKPOINT = ("model", "ema", "optimizer", "power-0.05", "power-0.1")
KILLS = 30


@pytest.fixture
def slice_(slice_of):
    return slice_of(model=EXPERTS, images=IMAGES, batch_images=BATCH, mask_ratio=0.5, posthoc_ema=[0.05, 0.1])


@pytest.fixture
def manifest(tmp_path, slice_, toy):
    """One sample makes a step be skipped in every epoch."""
    (row,) = rows_at(slice_, toy, 30, 1)
    return write_manifest(tmp_path / "bad", 8, 4, poisoned({row: float("nan")}))


@pytest.fixture
def undisturbed(trainer, slice_, manifest):
    """Outputs of a run that nobody killed."""
    return trainer.run(slice_, manifest, name="undisturbed", **RULES)


def wait_for_moment(number, trainer, process, seconds, chance):
    """Of every four kills one falls into the writing of a checkpoint, one right behind its renaming, one into the steps
    after that, and one into the time from the start to the first steps."""
    before = trainer.newest()
    if number % 4 == 0:
        wait_until(process, lambda: half_written(trainer))
    elif number % 4 == 3:
        time.sleep(chance.uniform(0, 1.3 * seconds["start"]))
    else:
        wait_until(process, lambda: trainer.newest() > before)
        two_steps = 2 * (sum(seconds.values()) - seconds["start"]) / (IMAGES / BATCH)
        time.sleep(chance.uniform(0, two_steps) if number % 4 == 2 else 0)


def half_written(trainer):
    return list(trainer.folder.glob("run/work/*/.0*.part"))


@pytest.mark.timeout(900)  # on a machine that has much else to do
def test_killed_at_thirty_moments_a_run_ends_with_the_same_bits(trainer, slice_, manifest, undisturbed):
    chance, found, seconds = random.Random(7), 0, read_json(undisturbed / "summary.json")["seconds"]
    for number in range(KILLS):
        process = trainer.start(slice_, manifest, **RULES)
        wait_for_moment(number, trainer, process, seconds, chance)
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, "over before it was killed"
        found += bool(half_written(trainer))
    assert found > 0 and 0 < trainer.newest() < IMAGES
    process = trainer.start(slice_, manifest, **RULES)
    out = trainer.folder / "run/out"
    wait_until(process, lambda: out.exists() and any(out.iterdir()))  # the stage is being handed over
    process.kill()
    process.join(60)
    trainer.run(slice_, manifest, **RULES)

    assert same(weights(out), weights(undisturbed)) and metrics(out) == metrics(undisturbed)
    assert same_work(trainer.work("run"), trainer.work("undisturbed"))
    assert not list(trainer.folder.glob("run/*/**/.*"))


def same_work(one, other):
    """Whether all that goes on from run to run is equal in every bit, but for times."""
    last = f"{IMAGES:012d}"
    states = [read_json(folder / last / "state.json") for folder in (one, other)]
    states = [{key: value for key, value in state.items() if key not in ("seconds", "sha256")} for state in states]
    snapshots = [{file.name: file.read_bytes() for file in (folder / "snapshots").iterdir()} for folder in (one, other)]
    skipped = [json_lines(folder / "skipped.jsonl") for folder in (one, other)]
    skips = IMAGES // TRAINED  # one an epoch
    assert len(snapshots[0]) == 2 * IMAGES // SNAPSHOT and len(skipped[0]) == states[0]["skipped"] == skips
    assert states[0]["guard"][2] == IMAGES / BATCH - skips  # the gradient norms of all steps that were taken
    equal = states[0] == states[1] and snapshots[0] == snapshots[1] and skipped[0] == skipped[1]
    return equal and same(weights(one / last, CHECKPOINT), weights(other / last, CHECKPOINT))
