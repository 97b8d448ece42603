"""What a change reruns: that stage, those below it, and no other. Dry runs on a finished project."""

import os
from collections import Counter

import pytest

BELOW = {"evaluate": 1, "card": 1, "model": 1, "report": 1}


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        ("stages: {high_masked: {learning_rate: 0.5}}", {"train": 2, **BELOW}),
        ("stages: {low_masked: {mask_ratio: 0.5}}", {"train": 4, **BELOW}),
        ("evaluation: {guidance: 4.5}", BELOW),
        ("runtime: {sample_batch: 7, log_every_images: 32}", {}),
        ("report: {title: Other}", {"report": 1}),
        ("report: {dollars_per_hour: 3.0}", {"card": 1, "report": 1}),
        ("sources: {scenes_synthetic: {role: real}}", {"manifest": 4, "train": 4, **BELOW}),
        ("model: {depth: 5}", {"train": 4, **BELOW}),
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
