"""`python -m pipeline status` says what Snakemake would do, in the words of the configuration, also beside a run."""

import json
import os
import signal
import time
from collections import Counter

import psutil
import pytest

SMOKE = "tests/workflow/smoke.yaml"
LONGER = """
stages: {high_full: {images: 160000}}
runtime: {log_every_images: 16, checkpoint_every_images: 1600, samples_every_images: 1000000}
"""


def _status(project, *overlays):
    options = [word for overlay in (SMOKE, *overlays) for word in ("--configfile", str(overlay))]
    done = project.pipeline("status", "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _to_run(status):
    """Jobs by rule that are not done."""
    return sum((Counter({row["rule"]: row["jobs"] - row["done"]}) for row in status["rows"]), Counter())


def _why(status, rule, of):
    (row,) = [row for row in status["rows"] if (row["rule"], row["of"]) == (rule, of)]
    return list(row["why"])


def test_a_finished_run_is_done(finished):
    status = _status(finished)
    assert not _to_run(status) and not status["running"] and not status["failed"]
    assert sum(row["done"] for row in status["rows"] if row["rule"] == "collect") == 4


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        (
            "stages: {high_masked: {learning_rate: 0.5}}",
            {
                ("train", "high_masked"): ["stages.high_masked.learning_rate: 0.0015 -> 0.5"],
                ("train", "high_full"): ["below train high_masked"],
            },
        ),
        (
            "{sources: {scenes: {min_side: 16}}, models: {text_padding: drop}, report: {title: 'before now: after'}}",
            {
                ("collect", "scenes"): ["sources.scenes.min_side: 32 -> 16"],
                ("caption", "scenes"): ["below collect scenes"],
                ("encode", "scenes_synthetic"): ["models.text_padding: not set -> drop"],
            },
        ),
    ],
)
def test_it_agrees_with_snakemake_and_names_the_key(finished, tmp_path, overlay, expected):
    file = tmp_path / "overlay.yaml"
    file.write_text(overlay)
    status = _status(finished, file)
    assert _to_run(status) == finished.planned(file)
    for (rule, of), reasons in expected.items():
        assert _why(status, rule, of) == reasons


def test_it_tells_code_that_changed_files_that_are_gone_and_jobs_that_failed(clone):
    file = clone.folder / "pipeline/encode/latents.py"
    file.write_text(file.read_text() + "\nADDED = 1\n")
    (clone.folder / "results/manifests/low_masked.json").unlink()
    (clone.folder / "results/report.html").unlink()
    (clone.folder / "results/logs/report.log").write_text("error: results/fid_coco.json: no such key\n")
    status = _status(clone)
    assert _to_run(status) == clone.planned()
    assert _why(status, "encode", "scenes") == ["what the code of the step does changed"]
    assert "missing: results/manifests/low_masked.json" in _why(status, "manifest", "low_masked")
    assert [each["line"] for each in status["failed"]] == ["error: results/fid_coco.json: no such key"]


def _lines(project):
    """Runs of the last stage that have written metrics."""
    return {file.parent.name for file in (project.folder / "results/work/train/high_full").glob("*/metrics.jsonl")}


def test_beside_a_run_it_tells_how_far_training_is_and_after_a_kill_that_it_stopped(clone):
    overlay = clone.overlay("longer.yaml", LONGER)
    driver = clone.start("--", "results/train/high_full/summary.json", overlays=(SMOKE, overlay))
    try:
        work, before = clone.folder / "results/work/train/high_full", _lines(clone)
        while not any('"images_per_second"' in (work / name / "metrics.jsonl").read_text() for name in _lines(clone) - before):
            assert driver.poll() is None
            time.sleep(0.2)
        driving, now = _status(clone, overlay)["running"]
        assert (driving["what"], now["what"]) == ("driver", "train-high_full")
        assert " of 160,000 images, " in now["progress"] and now["progress"].endswith(" left")
    finally:
        for process in [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]:
            os.kill(process.pid, signal.SIGKILL)
        driver.wait()
    status = _status(clone, overlay)
    assert not status["running"] and [each["job"] for each in status["failed"]] == ["train high_full"]
