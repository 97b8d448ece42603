import json

import pytest

from pipeline.artifacts import read_json
from tests.training import Trainer

PRICE, SIGMAS = 3.6, [0.2, 2.0]


@pytest.fixture(scope="module")
def finished(server, vae, slice_of, toy, tmp_path_factory):
    """A stage that was validated five times, with a price."""
    trainer = Trainer(server, vae, tmp_path_factory.mktemp("summary"))
    sections = {"report": {"dollars_per_hour": PRICE}, "validation": {"sigmas": SIGMAS}}
    out = trainer.run(slice_of(images=480, mask_ratio=0.5), toy, sections=sections, checkpoint_every_images=96, microbatch=8)
    return trainer, read_json(out / "summary.json")


def lines(trainer, key):
    every = (trainer.folder / "run/out/metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, every) if key in line]


def test_time_and_money_of_all_activities(finished):
    summary = finished[1]
    seconds = summary["seconds"]
    assert set(seconds) == {"start", "training", "samples", "validation", "checkpoints"}
    assert summary["device_hours"] == pytest.approx(sum(seconds.values()) / 3600, abs=2e-6)
    assert summary["dollars"] == pytest.approx(PRICE * sum(seconds.values()) / 3600, abs=1e-4)
    assert summary["images_per_second"] == pytest.approx(480 / seconds["training"], rel=1e-3)


def test_the_plan_stands_beside_what_it_took(finished):
    summary = finished[1]
    plan, peak = summary["plan"], summary["peak"]
    assert plan["share_of_peak"] == 0.45 and peak["source"] == "measured"
    hours = summary["training_flops"] / (0.45 * 1e12 * peak["tflops"]) / 3600
    assert plan["device_hours"] == pytest.approx(hours, rel=0.05, abs=1e-6)
    share = summary["images_per_second"] * summary["training_flops"] / 480 / (1e12 * peak["tflops"])
    assert summary["share_of_peak"] == pytest.approx(share, rel=0.05, abs=1e-4)


def test_validation_is_in_the_metrics_and_the_best_in_the_summary(finished):
    trainer, summary = finished
    measured = lines(trainer, "validation_loss")
    assert [line["images"] for line in measured] == [96, 192, 288, 384, 480]
    assert all(list(line["validation_by_sigma"]) == ["0.2", "2"] for line in measured)
    best = min(measured, key=lambda line: line["validation_loss"])
    assert summary["best"] == {"images": best["images"], "validation_loss": best["validation_loss"]}
    assert measured[-1]["validation_loss"] < measured[0]["validation_loss"]  # it learns


def test_what_the_stage_is(finished):
    trainer, summary = finished
    losses = [line["loss"] for line in lines(trainer, "loss")]
    assert summary["loss"] == {"first": losses[0], "last": losses[-1]}
    assert (summary["processes"], summary["parallel"], summary["microbatch"], summary["skipped_steps"]) == (1, "ddp", 8, 0)
    assert summary["model"]["caption_length"] == 3 and summary["config"]["stage"]["mask_ratio"] == 0.5


def test_the_progress_line_says_how_it_goes(finished):
    told = finished[0].log().read_text().splitlines()
    last = next(line for line in reversed(told) if line.startswith("toy: 100%"))
    for part in ("480/480 images", " images/s", "00:00 left", "loss 0.", "lr 0.01", "% of peak", "$0.00 left"):
        assert part in last, last
