"""Drawing that several jobs share, and the evaluation of the best weights of a stage's curve."""

import json
import shutil
from collections import Counter

import pytest

SMOKE = "tests/workflow/smoke.yaml"
STAGE, BEST = "results/eval/high_full", "results/eval/high_full/best/card.json"
BELOW = {"evaluate": 1, "card": 1, "model": 1, "report": 1}


@pytest.mark.parametrize(
    ("overlay", "target", "expected"),
    [
        # Snakemake compares the names of inputs, so the evaluation runs again; it finds every picture and draws none.
        ("runtime: {sample_shards: 3}", "all", {"sample": 3, **BELOW}),
        ("evaluation: {weights: best}", "all", BELOW),
        ("evaluation: {weights: ema}", "all", {}),
        ("report: {title: Other}", BEST, {"evaluate_best": 1}),
        ("runtime: {sample_shards: 2}", BEST, {"sample_best": 2, "evaluate_best": 1}),
    ],
)
def test_what_a_setting_starts(finished, tmp_path, overlay, target, expected):
    file = tmp_path / "overlay.yaml"
    file.write_text(overlay)
    assert finished.planned(file, target=target) == Counter(expected)


def test_best_weights_without_a_curve_are_told_in_one_line(finished, tmp_path):
    file = tmp_path / "overlay.yaml"
    file.write_text("evaluation: {weights: best, curve: {images: 0}}")
    done = finished.snakemake("--dry-run", overlays=(SMOKE, file))
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error:")]
    assert done.returncode != 0 and len(said) == 1 and "set evaluation.curve.images" in said[0]


def run(project, target, *overlays):
    done = project.snakemake("--", target, overlays=(SMOKE, *overlays))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def card_of(project, file):
    return json.loads((project.folder / file).read_text())


def pictures(project):
    """All that were drawn for the last stage, without reconstructions."""
    folder = project.folder / "results/work/eval/high_full"
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.png") if "/vae/" not in str(file)}


@pytest.mark.timeout(900)  # on a machine that has much else to do
def test_jobs_that_share_the_drawing_make_the_same_pictures_and_the_evaluation_draws_none(finished, clone):
    shutil.rmtree(clone.folder / "results/work/eval/high_full")
    shards = clone.overlay("shards.yaml", "runtime: {sample_shards: 2}")
    run(clone, f"{STAGE}/samples/2-of-2.json", shards)
    half = pictures(clone)
    run(clone, f"{STAGE}/samples/1-of-2.json", shards)
    drawn = pictures(clone)
    assert drawn == pictures(finished) and 0 < len(half) < len(drawn) == 24 + 8 + 6
    records = [card_of(clone, f"{STAGE}/samples/{number}-of-2.json") for number in (1, 2)]
    assert sum(record["count"] for record in records) == len(drawn) and records[1]["count"] == len(half)
    run(clone, f"{STAGE}/card.json", shards)
    before, after = (card_of(project, f"{STAGE}/card.json") for project in (finished, clone))
    assert after["drawn"] == 0 and pictures(clone) == drawn
    assert after["metrics"]["fid"] == pytest.approx(before["metrics"]["fid"], rel=1e-9)
    assert after["metrics"]["geneval"] == before["metrics"]["geneval"]
    scored = clone.overlay("scored.yaml", "evaluation: {bootstrap: 5, geneval: {detector_threshold: 0.4}}")
    assert clone.planned(shards, scored) == Counter(BELOW), "another score is no reason to draw"
    drawn_otherwise = clone.overlay("drawn.yaml", "evaluation: {geneval: {limit: 7}}")
    assert clone.planned(shards, drawn_otherwise) == Counter({"sample": 2, **BELOW})


@pytest.mark.timeout(900)
def test_the_best_weights_have_a_card_of_their_own_or_are_those_of_the_run(clone):
    run(clone, BEST)
    best, last = card_of(clone, BEST), card_of(clone, f"{STAGE}/card.json")
    summary = card_of(clone, "results/train/high_full/summary.json")
    seen = summary["images_seen_total"] - summary["images_seen"] + summary["best_by_fid"]["images"]
    assert (best["weights"]["file"], best["weights"]["images_seen_total"]) == ("best.safetensors", seen)
    assert last["weights"]["file"] == "ema.safetensors" and not clone.planned()
    chosen = clone.overlay("best.yaml", "evaluation: {weights: best}")
    run(clone, "results/model/model_index.json", chosen)
    assert card_of(clone, "results/fid_coco.json")["weights"] == best["weights"]
    assert card_of(clone, "results/model/model_index.json")["trained"]["weights"] == "best"
    compared = clone.pipeline("compare", BEST, "results/fid_coco.json")
    assert compared.returncode == 0 and "weights.file" not in compared.stdout
