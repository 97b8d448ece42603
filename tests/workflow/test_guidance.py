"""The sweep over guidance scales."""

import json
from collections import Counter

import pytest

BELOW = {"card": 1, "model": 1, "report": 1}
SWEPT = {"evaluate_guidance": 2, "guidance": 1, "report": 1}
TARGET = "results/guidance.json"


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        ("evaluation: {guidance_sweep: [1, 3.5]}", SWEPT),
        ("evaluation: {guidance_sweep: [1, 2, 3.5]}", SWEPT),  # the evaluation itself has 2
        ("evaluation: {guidance_sweep: []}", {}),
        ("{evaluation: {guidance_sweep: [1, 3.5]}, runtime: {sample_shards: 1}}", SWEPT),
        (
            "{evaluation: {guidance_sweep: [1, 3.5]}, runtime: {sample_shards: 3}}",
            {"sample": 3, "evaluate": 1, "sample_guidance": 6, **SWEPT, **BELOW},
        ),
        ("evaluation: {sampler: {name: euler}}", {"evaluate": 1, **BELOW}),
        ("evaluation: {sampler: {name: heun, interval: null}}", {}),
    ],
)
def test_what_a_setting_starts(finished, tmp_path, overlay, expected):
    file = tmp_path / "overlay.yaml"
    file.write_text(overlay)
    assert finished.planned(file) == Counter(expected)


def test_a_sweep_is_compared_and_a_longer_one_evaluates_only_what_is_new(clone):
    one = clone.overlay("one.yaml", "evaluation: {guidance_sweep: [1]}")
    two = clone.overlay("two.yaml", "evaluation: {guidance_sweep: [3.5, 1]}")
    done = clone.snakemake("--", TARGET, overlays=("tests/workflow/smoke.yaml", one))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    result = json.loads((clone.folder / TARGET).read_text())
    assert [point["guidance"] for point in result["points"]] == [1.0, 2.0] and result["stage"] == "high_full"
    assert (clone.folder / "results/guidance.png").read_bytes()[:4] == b"\x89PNG"
    assert not clone.planned(one, target=TARGET)
    assert clone.planned(two, target=TARGET) == Counter({"evaluate_guidance": 1, "guidance": 1})
    assert not clone.planned()
