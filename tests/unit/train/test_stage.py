"""Whole runs of the command line, in processes of their own, ended by real signals."""

import json
import os
import random
import shutil
import signal
import socket
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.artifacts import read_json
from tests.unit.train.conftest import Trainer

WEIGHTS = ("model", "ema", "optimizer")
SLOWLY = {"samples_every_images": 24}  # a grid a step changes no result and leaves time to stop a run in the middle
TIMES = ("seconds", "images_per_second")


def weights(out):
    return {f"{name}/{key}": value for name in WEIGHTS for key, value in load_file(out / f"{name}.safetensors").items()}


def same(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])] == []


def metrics(out):
    """Lines of metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def wait_until(process, happened):
    ends = time.monotonic() + 60
    while not happened() and process.is_alive() and time.monotonic() < ends:
        time.sleep(0.002)


@pytest.fixture(scope="session")
def finished(server, vae, slice_of, toy, tmp_path_factory):
    """The trainer of a run that nobody stopped."""
    trainer = Trainer(server, vae, tmp_path_factory.mktemp("finished"))
    trainer.run(slice_of(mask_ratio=0.5), toy)
    return trainer


@pytest.fixture
def reference(finished):
    """Its outputs."""
    return finished.folder / "run/out"


@pytest.fixture
def masked(slice_of):
    return slice_of(mask_ratio=0.5)


def test_training_learns_and_says_what_it_did(reference):
    lines, summary = metrics(reference), read_json(reference / "summary.json")
    assert [line["images"] for line in lines] == list(range(96, 961, 96))
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1] == lines[-1] | {"step": 40, "epoch": 8.0, "learning_rate": 1e-2, "ema_decay": 0.9}
    assert summary["loss"] == {"first": lines[0]["loss"], "last": lines[-1]["loss"]}
    model = load_file(reference / "model.safetensors")
    buffers = {"pos_embed", "mask_token"}
    assert summary["parameters"] == sum(tensor.numel() for name, tensor in model.items() if name not in buffers)
    assert summary["model"]["input_size"] == 4 and summary["config"]["stage"]["mask_ratio"] == 0.5
    assert (summary["images_seen"], summary["images_seen_total"], summary["parent"]) == (960, 960, None)
    assert summary["seconds"].keys() == {"start", "training", "samples", "checkpoints"}
    assert summary["images_per_second"] == pytest.approx(960 / summary["seconds"]["training"], rel=0.01)
    assert summary["device_hours"] == pytest.approx(sum(summary["seconds"].values()) / 3600, rel=0.01)
    assert summary["precision"] == "float32" and summary["processes"] == 1 and summary["training_flops"] > 1e8


def test_grids_are_drawn_at_the_first_at_intervals_and_at_the_end(reference):
    drawn = sorted((reference.parent / "work").glob("*/samples/*.png"))
    assert [int(path.stem) for path in drawn] == [0, 240, 480, 720, 960]
    assert Image.open(reference / "samples.png").size == (32, 16)  # 8 images of 8 px, four a row
    first, last = (np.asarray(Image.open(path), dtype=float) for path in (drawn[0], drawn[-1]))
    assert np.abs(first - last).mean() > 1


def test_a_finished_stage_is_handed_over_again_without_training(finished, reference, masked, toy):
    before, measured, told = weights(reference), metrics(reference), finished.log().read_text()
    (reference / "model.safetensors").unlink()
    assert same(weights(finished.run(masked, toy)), before) and metrics(reference) == measured
    assert "loss" in told and "loss" not in finished.log().read_text().removeprefix(told)


def test_signals_save_and_the_same_command_goes_on(trainer, reference, masked, toy):
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        process = trainer.start(masked, toy, checkpoint_every_images=960, **SLOWLY)
        wait_until(process, lambda: trainer.measured() > trainer.newest())
        os.kill(process.pid, number)
        process.join(60)
        told = trainer.log().read_text()
        assert process.exitcode == 1, told
        assert told.splitlines()[-1] == f"stopped by {number.name} at {trainer.newest()} images; run the same command to go on"
        assert "Traceback" not in told and 0 < trainer.newest() < 960 and not (trainer.folder / "run/out").exists()
    out = trainer.run(masked, toy, checkpoint_every_images=960)
    assert same(weights(out), weights(reference)) and metrics(out) == metrics(reference)
    assert (out / "samples.png").read_bytes() == (reference / "samples.png").read_bytes()


def test_killing_it_anywhere_loses_nothing_that_was_saved(trainer, reference, masked, toy):
    chance = random.Random(5)
    for _ in range(3):
        process, before = trainer.start(masked, toy, **SLOWLY), trainer.newest()
        wait_until(process, lambda before=before: trainer.newest() > before)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL and 0 < trainer.newest() < 960
    out = trainer.run(masked, toy)
    assert same(weights(out), weights(reference)) and metrics(out) == metrics(reference)
    assert not list((trainer.folder / "run/work").glob("*/.*"))


def test_a_deadline_saves_after_at_least_one_step(trainer, slice_of, toy):
    for steps in (1, 2):
        trainer.run(slice_of(images=72), toy, deadline=0, expect=1)
        assert f"stopped by deadline at {24 * steps} images" in trainer.log().read_text()
    trainer.run(slice_of(images=72), toy, deadline=0)  # nothing is left to stop


def test_a_damaged_checkpoint_is_passed_over(trainer, finished, reference, masked, toy):
    shutil.copytree(finished.folder / "run/work", trainer.folder / "run/work")
    newest = trainer.checkpoints()[-1]
    (newest / "optimizer.safetensors").write_bytes(b"\0" * 100)
    out = trainer.run(masked, toy)
    assert f"{newest}: optimizer.safetensors is not what was written" in trainer.log().read_text()
    assert same(weights(out), weights(reference)) and metrics(out) == metrics(reference)


def test_a_changed_setting_gets_a_folder_of_its_own(trainer, slice_of, toy, reference):
    trainer.run(slice_of(images=48), toy)
    trainer.run(slice_of(images=48, learning_rate=1e-3), toy, log_every_images=24)
    trainer.run(slice_of(images=48), toy, log_every_images=48, keep_checkpoints=1)  # runtime keys change nothing
    assert len(list((trainer.folder / "run/work").iterdir())) == 2


def test_a_child_starts_from_its_parent_at_another_resolution(trainer, slice_of, toy_high, reference):
    def child(**changes):
        return slice_of({"name": "high"}, px=16, images=48, start_from="ema", **changes)

    out = trainer.run(child(learning_rate=1e-12, fresh_optimizer=False), toy_high, parent=reference)
    before, after = load_file(reference / "ema.safetensors"), load_file(out / "model.safetensors")
    summary = read_json(out / "summary.json")
    assert before["pos_embed"].shape[1] == 16 and after["pos_embed"].shape[1] == 64
    kept = [name for name in before if name != "pos_embed"]
    assert all(torch.allclose(before[name], after[name], atol=1e-8) for name in kept)
    assert (summary["images_seen"], summary["images_seen_total"]) == (48, 1008)
    assert summary["parent"] == read_json(reference / "summary.json")["fingerprint"] != summary["fingerprint"]
    assert summary["model"]["pos_interp_scale"] == 2.0
    assert load_file(out / "optimizer.safetensors")["step"] == 42  # 40 of the parent's

    fresh = trainer.run(child(), toy_high, name="fresh", parent=reference)
    assert load_file(fresh / "optimizer.safetensors")["step"] == 2
    assert metrics(fresh)[0]["loss"] < metrics(reference)[0]["loss"]


def test_divergence_stops_and_names_the_step(trainer, slice_of, toy):
    trainer.run(slice_of(learning_rate=1e30, clip_norm=1e30), toy, expect=1, log_every_images=240, checkpoint_every_images=240)
    told = trainer.log().read_text().splitlines()[-1]
    assert told.startswith("stages.toy: loss or gradient was not finite in the step to ") and "last good checkpoint: none" in told
    assert not (trainer.folder / "run/out").exists() and not trainer.checkpoints()


def test_a_stage_that_does_not_fit_is_one_line(trainer, slice_of, toy):
    trainer.run(slice_of(model={"dim": 30}), toy, expect=1)
    told = "error: stages.toy: model: dim 30 is not a multiple of head_dim 16; change either"
    assert trainer.log().read_text().splitlines() == [told]


def test_two_processes_train_what_one_trains(trainer, reference, masked, toy):
    """With microbatches that do not divide the share, and a stop that reaches one of the two alone."""
    pair = start_two(trainer, masked, toy, **SLOWLY)
    wait_until(pair[1], lambda: trainer.newest() > 0)
    os.kill(pair[1].pid, signal.SIGTERM)
    assert ends(pair) == [1, 1] and trainer.log().read_text().count("stopped by SIGTERM") == 1
    assert ends(start_two(trainer, masked, toy)) == [0, 0], trainer.log().read_text()

    out = trainer.folder / "run/out"
    one, two = weights(reference), weights(out)
    one, two = (torch.cat([tensors[name].flatten() for name in sorted(tensors)]) for tensors in (one, two))
    assert (one - two).norm() / one.norm() < 1e-3
    for line, expected in zip(metrics(out), metrics(reference), strict=True):
        for key in ("loss", "grad_norm", "loss_by_noise"):
            assert line[key] == pytest.approx(expected[key], rel=1e-2)
    summary = read_json(out / "summary.json")
    assert summary["processes"] == 2 and summary["fingerprint"] == read_json(reference / "summary.json")["fingerprint"]


def start_two(trainer, slice_, manifest, **runtime):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return [trainer.start(slice_, manifest, microbatch=5, environment=rank, **runtime) for rank in ranks]


def ends(processes):
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_it_saves_though_nobody_reads_its_log_any_more(trainer, masked, toy):
    """A signal to a whole process group also ends the `tee` that writes the log."""
    trainer.log().parent.mkdir()
    os.mkfifo(trainer.log())
    reader = os.open(trainer.log(), os.O_RDONLY | os.O_NONBLOCK)
    process = trainer.start(masked, toy, checkpoint_every_images=960, **SLOWLY)
    wait_until(process, lambda: trainer.measured() > 0)
    os.close(reader)
    wait_until(process, lambda: trainer.measured() > 192)  # lines of progress were lost on the way
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode != 0 and 192 < trainer.newest() < 960
