import json

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts import sha256_file
from pipeline.config.steps import EvaluateSlice
from pipeline.errors import UserError
from pipeline.evaluate.evaluate import run
from pipeline.metrics.features import INCEPTION_URL


@pytest.fixture
def evaluate(tmp_path, shards, stage, settings):
    """Run the step with a slice; the card."""

    def go(slice_, out="out", shards=shards):
        run(slice_, settings, *shards, stage, tmp_path / "work", tmp_path / out)
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
    assert (card["images"], card["real_images"], card["px"]) == (8, 12, 32)
    assert card["feature_network"]["width"] == 8 and card["feature_network"]["input_px"] == 16
    assert card["sampler"]["steps"] == 2 and card["sampler"]["sigma_data"] == 0.7 and card["sampler"]["precision"] == "float32"
    assert card["weights"]["sha256"] == sha256_file(stage / "ema.safetensors") and card["weights"]["images_seen_total"] == 640
    assert card["comparable_to_published"] is False and len(card["why_not"]) == 3
    assert len(card["warnings"]) == 1 and "8 images for 8 features" in card["warnings"][0]
    assert set(card["seconds"]) == {"loading", "sampling", "vae", "untrained", "features", "detection", "gallery"}
    entries = json.loads((tmp_path / "out/gallery.json").read_text())
    assert [entry["key"] for entry in entries] == [f"{i:012d}" for i in (1, 2, 3, 5, 6, 7, 8, 9)]
    assert Image.open(tmp_path / "out/samples.png").width > 256
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["card.json", "gallery.json", "samples.png"]


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


def test_the_slice_survives_its_way_over_the_command_line(slice_of):
    assert EvaluateSlice.parse(slice_of().to_json()).evaluation == slice_of().evaluation


def test_too_few_captions_stop_before_anything_is_drawn(evaluate, slice_of, tmp_path):
    with pytest.raises(UserError, match=r"evaluation.images: 20, but only 11 of the 12"):
        evaluate(slice_of(images=20))
    assert not (tmp_path / "work").exists()


def test_inception_is_asked_for_before_anything_is_drawn(evaluate, slice_of, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=INCEPTION_URL):
        evaluate(slice_of(features="inception"))
    assert not (tmp_path / "work").exists()


def test_an_autoencoder_that_the_model_was_not_trained_with_is_refused(evaluate, slice_of):
    with pytest.raises(UserError, match=r"models.vae: embedded:vae, but .*stage0 was trained with .*vae; give that one"):
        evaluate(slice_of(vae="embedded:vae"))
