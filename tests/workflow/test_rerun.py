"""What a change reruns: that stage, those below it, and no other. Dry runs on a finished project."""

import json
import os
from collections import Counter

import pandas as pd
import pytest

BELOW = {"evaluate": 1, "card": 1, "model": 1, "report": 1}


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        ("stages: {high_masked: {learning_rate: 0.5}}", {"train": 2, **BELOW}),
        ("stages: {low_masked: {mask_ratio: 0.5}}", {"train": 4, **BELOW}),
        ("evaluation: {guidance: 4.5}", BELOW),
        ("runtime: {sample_batch: 7, log_every_images: 32, captioner_mb: 9000}", {}),
        ("evaluation: {curve: {steps: 3}}", {}),
        ("evaluation: {curve: {images: 0}}", {"train": 4, **BELOW}),
        ("report: {title: Other}", {"report": 1}),
        ("report: {dollars_per_hour: 3.0}", {"card": 1, "model": 1, "report": 1}),
        ("sources: {scenes_synthetic: {role: real}}", {"manifest": 4, "train": 4, **BELOW}),
        ("model: {depth: 5}", {"train": 4, **BELOW}),
        ("filters: {max_aspect: 2}", {"manifest": 4, "train": 4, **BELOW}),
        ("stages: {high_full: {written_share: 0.5}}", {"train": 1, **BELOW}),
        ("stages: {high_full: {written_share: null}}", {}),
    ],
)
def test_editing_one_setting(finished, tmp_path, overlay, expected):
    file = tmp_path / "overlay.yaml"
    file.write_text(overlay)
    assert finished.planned(file) == Counter(expected)


def test_a_captioner_setting_leaves_kept_captions_alone(finished, tmp_path):
    file = tmp_path / "overlay.yaml"
    file.write_text("sources: {scenes_synthetic: {caption: write}}")
    assert finished.planned(file)["caption"] == 1


def test_a_sample_that_is_taken_down_makes_manifests_anew_and_encodes_nothing(clone):
    key = pd.read_parquet(clone.folder / "results/data/scenes/00000.parquet")["key"][0]
    assert clone.pipeline("take-down", f"scenes/{key}").returncode == 0
    assert clone.planned() == Counter({"manifest": 4, "train": 4, **BELOW})
    done = clone.snakemake("--", "results/manifests/low_full.json")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    counts = json.loads((clone.folder / "results/manifests/low_full.json").read_text())["counts"]
    assert counts["scenes"]["left_out"]["taken_down"] == 1
    (clone.folder / "take_down.txt").unlink()
    assert clone.planned() == Counter({"manifest": 1, "train": 3, **BELOW})


def test_a_comment_in_a_step_reruns_nothing(clone):
    file = clone.folder / "pipeline/encode/encode.py"
    file.write_text(file.read_text() + "\n# a remark\n")
    assert not clone.planned()


def test_an_edit_of_what_encode_does_reruns_it_and_what_is_below(clone):
    file = clone.folder / "pipeline/encode/encode.py"
    file.write_text(file.read_text() + "\nADDED = 1\n")
    assert clone.planned() == Counter({"encode": 3, "manifest": 4, "train": 4, **BELOW})


def test_an_edit_of_the_trainer_reruns_nothing(clone):
    file = clone.folder / "pipeline/train/stage.py"
    file.write_text(file.read_text() + "\nADDED = 1\n")
    assert not clone.planned()


def test_touching_results_reruns_nothing(clone):
    for file in (clone.folder / "results").rglob("*"):
        if file.is_file() and file.suffix in {".json", ".tar", ".arrow", ".parquet"}:
            os.utime(file)
    assert not clone.planned()
