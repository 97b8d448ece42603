import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.artifacts import read_json, sha256_file, write_json
from pipeline.config.steps import EvaluateSlice
from pipeline.errors import UserError
from pipeline.evaluate.evaluate import run
from pipeline.metrics import features
from pipeline.report.compare import compare, made_differently


@pytest.fixture
def evaluate(tmp_path, shards, stage, settings):
    """Run the step with a slice; the card."""

    def go(slice_, out="out", shards=shards, weights=stage):
        run(slice_, settings, *shards, weights, tmp_path / "work", tmp_path / out, tmp_path / "reference")
        return json.loads((tmp_path / out / "card.json").read_text())

    return go


def test_the_card_says_what_was_measured_and_what_made_it(evaluate, slice_of, stage, tmp_path):
    card = evaluate(slice_of())
    metrics, scale = card["metrics"], card["scale"]
    assert metrics["fid"] > 0 and metrics["kid_std_error"] > 0
    assert 0 <= metrics["clip_score"] <= 100 and 0 <= metrics["clip_score_real"] <= 100
    counts = {group: row["images"] for group, row in metrics["accuracy"].items()}
    assert counts == {"one_object": 6, "two_objects": 2}
    assert metrics["detector_self_test"]["one_object"]["background"] > 0.9 > metrics["accuracy_vae"]["one_object"]["colour"]
    assert {name: part["images"] for name, part in scale.items()} == {"floor": 6, "vae": 8, "ceiling": 4}
    assert all(part["fid"] > 0 for part in scale.values())
    assert set(metrics["fid_by_resize"]) == {"clean", "legacy_pytorch"} and metrics["fid_by_resize"]["clean"] == metrics["fid"]
    assert all(0 <= metrics[name] <= 1 for name in ("precision", "recall", "coverage")) and metrics["density"] >= 0
    assert metrics["fid_interval"] is metrics["fid_infinity"] is metrics["fid_bias"] is None  # 8 images for 8 features
    assert card["clip_score_tokens"] == 12
    assert (card["images"], card["real_images"], card["px"]) == (8, 12, 32)
    assert card["feature_network"]["width"] == 8 and card["feature_network"]["input_px"] == 16
    assert card["sampler"]["steps"] == 2 and card["sampler"]["sigma_data"] == 0.7 and card["sampler"]["precision"] == "float32"
    assert card["weights"]["sha256"] == sha256_file(stage / "ema.safetensors") and card["weights"]["images_seen_total"] == 640
    assert card["comparable_to_published"] is False and len(card["why_not"]) == 5
    assert len(card["warnings"]) == 1 and "8 images for 8 features" in card["warnings"][0]
    assert set(card["seconds"]) == {"loading", "sampling", "vae", "untrained", "features", "detection", "gallery"}
    entries = json.loads((tmp_path / "out/gallery.json").read_text())
    assert [entry["key"] for entry in entries] == [f"{i:012d}" for i in (1, 2, 3, 5, 6, 7, 8, 9)]
    assert Image.open(tmp_path / "out/samples.png").width > 256
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "card.json", "failures.json", "gallery.json", "samples.png",
    ]  # fmt: skip


def test_distances_of_further_networks_come_with_their_scale_and_their_models(evaluate, slice_of, frozen, tmp_path):
    card = evaluate(slice_of(cmmd=frozen["clip"], clip_fid="embedded:clip", bootstrap=20))
    metrics, scale = card["metrics"], card["scale"]
    assert metrics["cmmd"] > 0 and metrics["clip_fid"] > 0 and "fd_dino" not in metrics
    assert all(set(part) == {"images", "fid", "cmmd", "clip_fid"} for part in scale.values())
    low, high = metrics["fid_interval"]
    assert low < metrics["fid"] < high
    assert card["cmmd_model"]["ref"] == frozen["clip"] and card["clip_fid_model"]["ref"] == "embedded:clip"
    assert card["fd_dino_model"] is None


def test_features_of_real_images_are_computed_once_for_all_evaluations(evaluate, slice_of, tmp_path):
    first = evaluate(slice_of())
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "reference").iterdir()}
    assert len(files) == 3  # two resizing modes, and the further images of the floor
    second = evaluate(slice_of(guidance=3.0), "again")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "reference").iterdir()} == files
    assert second["scale"]["floor"] == first["scale"]["floor"] and second["metrics"]["fid"] != first["metrics"]["fid"]
    evaluate(slice_of(images=6), "fewer")
    assert len(list((tmp_path / "reference").iterdir())) > 3


def test_every_picture_has_its_clip_score_and_the_worst_stand_apart(evaluate, slice_of, tmp_path):
    card = evaluate(slice_of())
    shown, worst = (json.loads((tmp_path / "out" / name).read_text()) for name in ("gallery.json", "failures.json"))
    scores = [entry["clip_score"] for entry in shown]
    assert np.mean(scores) == pytest.approx(card["metrics"]["clip_score"], abs=0.01)
    assert [entry["clip_score"] for entry in worst] == sorted(scores)  # fewer than 24 images: all of them
    assert {entry["key"]: entry for entry in shown} == {entry["key"]: entry for entry in worst}


def test_the_same_command_again_draws_nothing_and_gives_the_same_scores(evaluate, slice_of, tmp_path):
    first = evaluate(slice_of())
    for file in list((tmp_path / "work").rglob("*.png"))[::5]:
        file.unlink()
    second = evaluate(slice_of(), "again")
    third = evaluate(slice_of(), "more")
    assert first["drawn"] == 8 and 0 < second["drawn"] < 8 and third["drawn"] == 0
    assert second["metrics"]["fid"] == pytest.approx(first["metrics"]["fid"], rel=0.05)
    assert third["metrics"] == second["metrics"] and third["scale"] == second["scale"]


def test_scores_may_change_without_drawing_and_the_sampler_may_not(evaluate, slice_of, tmp_path):
    evaluate(slice_of(untrained_images=0))
    card = evaluate(slice_of(untrained_images=0, resize="legacy_pytorch"))
    assert card["drawn"] == 0 and card["resize"] == "legacy_pytorch" and card["scale"]["ceiling"] is None
    assert evaluate(slice_of(untrained_images=0, guidance=3.0))["drawn"] == 8
    assert len(list((tmp_path / "work").iterdir())) == 2


@pytest.fixture
def curved(tmp_path, stage):
    """The stage as if its curve had had its lowest FID at 384 of its 640 images."""
    folder = tmp_path / stage.name
    folder.mkdir()
    state = {name: value + 0.01 for name, value in load_file(stage / "ema.safetensors").items()}
    save_file(state, folder / "best.safetensors")
    shutil.copy(stage / "ema.safetensors", folder)
    point = {"images": 384, "curve_fid": 5.0, "curve_clip_score": 20.0, "curve_images": 8}
    write_json(folder / "summary.json", {**read_json(stage / "summary.json"), "images_seen_total": 1640, "best_by_fid": point})
    return folder


def test_the_best_weights_of_the_curve_have_a_card_of_their_own(evaluate, slice_of, curved, tmp_path):
    keys = {"untrained_images": 0, "bootstrap": 20}
    last, best = evaluate(slice_of(**keys), "a", weights=curved), evaluate(slice_of(**keys, weights="best"), "b", weights=curved)
    assert (last["weights"]["file"], last["weights"]["images_seen_total"]) == ("ema.safetensors", 1640)
    assert (best["weights"]["file"], best["weights"]["images_seen_total"]) == ("best.safetensors", 1000 + 384)
    assert best["weights"]["sha256"] == sha256_file(curved / "best.safetensors") and best["drawn"] == 8
    assert any("chosen by their FID" in line for line in best["warnings"]) and "chosen" not in str(last["warnings"])
    a, b = ({**card["metrics"], **card} for card in (last, best))
    assert not any(row.refused for row in compare(a, b)) and a["fid"] != b["fid"]
    assert ("weights.file", "ema.safetensors", "best.safetensors") in made_differently(a, b)
    assert ("weights.images_seen_total", "1640", "1384") in made_differently(a, b)


def test_best_weights_that_there_are_none_of_are_told(evaluate, slice_of, tmp_path):
    with pytest.raises(
        UserError, match=r"stage0: was trained without scores; set evaluation\.curve\.images and run its training"
    ):
        evaluate(slice_of(weights="best"))
    assert not (tmp_path / "work").exists()


def test_all_captions_are_evaluated_when_no_number_is_given(evaluate, slice_of, tmp_path):
    card = evaluate(slice_of(images=None, untrained_images=99))
    assert card["images"] == 11 and card["scale"]["ceiling"]["images"] == 11 and card["scale"]["floor"]["images"] == 6


def test_a_set_without_attributes_has_no_accuracies(evaluate, slice_of, write_shard, tmp_path):
    rng = np.random.default_rng(0)
    samples = []
    for i in range(4):
        file = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)).save(file)
        samples.append((f"photo{i}", file.read_bytes(), f"photo number {i}", None))
    images, captions = write_shard(tmp_path, "photos", samples)
    card = evaluate(slice_of(images=4), shards=([images], [captions]))
    assert [card["metrics"][name] for name in ("accuracy", "detector_self_test", "accuracy_vae")] == [None] * 3
    assert card["scale"]["floor"]["images"] == 2
    assert [card["metrics"][name] for name in ("precision", "recall", "density", "coverage")] == [None] * 4  # 5 neighbours


def test_the_slice_survives_its_way_over_the_command_line(slice_of):
    assert EvaluateSlice.parse(slice_of().to_json()).evaluation == slice_of().evaluation


def test_too_few_captions_stop_before_anything_is_drawn(evaluate, slice_of, tmp_path):
    with pytest.raises(UserError, match=r"evaluation.images: 20, but only 11 of the 12"):
        evaluate(slice_of(images=20))
    assert not (tmp_path / "work").exists()


def test_inception_is_asked_for_before_anything_is_drawn(evaluate, slice_of, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "INCEPTION_URL", "http://127.0.0.1:1/inception.pt")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1/inception\.pt could not be fetched"):
        evaluate(slice_of(features="inception"))
    assert not (tmp_path / "work").exists()


def test_an_autoencoder_that_the_model_was_not_trained_with_is_refused(evaluate, slice_of):
    with pytest.raises(UserError, match=r"models.vae: embedded:vae, but .*stage0 was trained with .*vae; give that one"):
        evaluate(slice_of(vae="embedded:vae"))


def test_two_evaluations_that_differ_in_the_model_alone_can_be_compared(evaluate, slice_of):
    keys = {"untrained_images": 0, "bootstrap": 20}
    first, second = evaluate(slice_of(**keys), "a"), evaluate(slice_of(**keys, guidance=3.0), "b")
    a, b = ({**card["metrics"], **card} for card in (first, second))
    rows = {row.name: row for row in compare(a, b)}
    assert not any(row.refused for row in rows.values()) and rows["fid"].difference == b["fid"] - a["fid"] != 0
    assert ("sampler.guidance", "2.0", "3.0") in made_differently(a, b)
    other = evaluate(slice_of(images=6), "c")
    refused = {row.name for row in compare(a, {**other["metrics"], **other}) if row.refused}
    assert {"fid", "kid", "clip_score", "precision"} <= refused
