"""Whole runs of the command line, in processes of their own, ended by real signals."""

import os
import random
import shutil
import signal
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.artifacts import read_json
from tests.training import Trainer, ends, json_lines, metrics, same, training_lines, wait_until, weights

SLOWLY = {"samples_every_images": 24}  # a grid a step changes no result and leaves time to stop a run in the middle


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
    lines, summary = training_lines(reference), read_json(reference / "summary.json")
    assert [line["images"] for line in lines] == list(range(96, 961, 96))
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1] == lines[-1] | {"step": 40, "epoch": 8.0, "learning_rate": 1e-2, "ema_decay": 0.9}
    assert summary["loss"] == {"first": lines[0]["loss"], "last": lines[-1]["loss"]}
    model = load_file(reference / "model.safetensors")
    buffers = {"pos_embed", "mask_token"}
    assert summary["parameters"] == sum(tensor.numel() for name, tensor in model.items() if name not in buffers)
    assert summary["model"]["input_size"] == 4 and summary["config"]["stage"]["mask_ratio"] == 0.5
    assert (summary["images_seen"], summary["images_seen_total"], summary["parent"]) == (960, 960, None)
    assert summary["seconds"].keys() == {"start", "training", "validation", "samples", "checkpoints"}
    assert summary["images_per_second"] == pytest.approx(960 / summary["seconds"]["training"], rel=0.01)
    assert summary["device_hours"] == pytest.approx(sum(summary["seconds"].values()) / 3600, rel=0.01)
    assert summary["precision"] == "float32" and summary["processes"] == 1 and summary["training_flops"] > 1e8


def test_the_rate_is_that_since_the_line_before(reference):
    """Which lines of validation in between do not change."""
    lines = [line for line in json_lines(reference / "metrics.jsonl") if "loss" in line]
    for before, line in pairwise([{"images": 0, "seconds": 0.0}, *lines]):
        seconds = line["seconds"] - before["seconds"]
        assert line["images_per_second"] * seconds == pytest.approx(line["images"] - before["images"], rel=0.02)


def test_grids_are_drawn_at_the_first_at_intervals_and_at_the_end(reference):
    drawn = sorted((reference.parent / "work").glob("*/samples/*.png"))
    assert [int(path.stem) for path in drawn] == [0, 240, 480, 720, 960]
    assert Image.open(reference / "samples.png").size == (32, 16)  # 8 images of 8 px, four a row
    first, last = (np.asarray(Image.open(path), dtype=float) for path in (drawn[0], drawn[-1]))
    assert np.abs(first - last).mean() > 1


def test_a_finished_stage_is_handed_over_again_without_training(finished, reference, masked, toy):
    before, measured, told = weights(reference), metrics(reference), finished.log().read_text()
    (reference / "model.safetensors").unlink()
    os.link(reference / "ema.safetensors", reference / ".model.safetensors.77.part")  # as a process leaves it that is killed
    assert same(weights(finished.run(masked, toy)), before) and metrics(reference) == measured
    assert not list(reference.glob(".*"))
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
    assert same(weights(out), weights(reference)) and training_lines(out) == training_lines(reference)
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
    assert training_lines(fresh)[0]["loss"] < training_lines(reference)[0]["loss"]


def test_divergence_stops_and_trusts_no_checkpoint_made_meanwhile(trainer, slice_of, toy):
    """The first step is taken, and breaks the weights; all others are skipped."""
    trainer.run(slice_of(learning_rate=1e30, clip_norm=1e30), toy, expect=1, log_every_images=240, checkpoint_every_images=240)
    told = trainer.log().read_text().splitlines()[-1]
    assert told.startswith("stages.toy: 11 steps in a row up to 288 images had a gradient that was not finite")
    assert "last good checkpoint: none" in told and trainer.newest() == 240 and not (trainer.folder / "run/out").exists()


def test_the_best_checkpoint_is_kept_and_named(trainer, slice_of, toy):
    """A learning rate that rises until it does harm."""
    out = trainer.run(slice_of(learning_rate=0.5, warmup_images=960), toy, checkpoint_every_images=48)
    losses = {line["images"]: line["validation_loss"] for line in metrics(out) if "validation_loss" in line}
    best = min(losses, key=losses.get)
    assert list(losses) == list(range(48, 961, 48)) and best < 864
    assert [int(path.name) for path in trainer.checkpoints()] == [best, 912, 960]
    assert read_json(out / "summary.json")["best"] == {"images": best, "validation_loss": losses[best]}


def test_a_save_that_takes_longer_than_the_lead_is_told(trainer, slice_of, toy):
    process = trainer.start(slice_of(images=48), toy, signal_lead_seconds=1)
    wait_until(process, lambda: list(trainer.folder.glob("run/work/*/.0*.part")))
    os.kill(process.pid, signal.SIGSTOP)
    assert not trainer.checkpoints()
    time.sleep(1.1)
    os.kill(process.pid, signal.SIGCONT)
    assert ends([process]) == [0]
    told = [line for line in trainer.log().read_text().splitlines() if line.startswith("saving took 1.")]
    assert len(told) == 1 and "longer than runtime.signal_lead_seconds (1 s)" in told[0]


def test_a_stage_that_does_not_fit_is_one_line(trainer, slice_of, toy):
    trainer.run(slice_of(model={"dim": 30}), toy, expect=1)
    told = "error: stages.toy: model: dim 30 is not a multiple of head_dim 16; change either"
    assert trainer.log().read_text().splitlines() == [told]


def test_two_processes_train_what_one_trains(trainer, reference, masked, toy):
    """With microbatches that do not divide the share, and a stop that reaches one of the two alone."""
    pair = trainer.start_two(masked, toy, microbatch=5, **SLOWLY)
    wait_until(pair[1], lambda: trainer.newest() > 0)
    os.kill(pair[1].pid, signal.SIGTERM)
    assert ends(pair) == [1, 1] and trainer.log().read_text().count("stopped by SIGTERM") == 1
    assert ends(trainer.start_two(masked, toy, microbatch=5)) == [0, 0], trainer.log().read_text()

    out = trainer.folder / "run/out"
    one, two = weights(reference), weights(out)
    one, two = (torch.cat([tensors[name].flatten() for name in sorted(tensors)]) for tensors in (one, two))
    assert (one - two).norm() / one.norm() < 1e-3
    for line, expected in zip(training_lines(out), training_lines(reference), strict=True):
        for key in ("loss", "grad_norm", "loss_by_noise"):
            assert line[key] == pytest.approx(expected[key], rel=1e-2)
    summary = read_json(out / "summary.json")
    assert summary["processes"] == 2 and summary["fingerprint"] == read_json(reference / "summary.json")["fingerprint"]


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
