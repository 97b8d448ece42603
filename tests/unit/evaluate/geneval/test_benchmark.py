"""The whole benchmark on drawn scenes: a maker that draws what it is asked for, or something else, instead of a model."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config.evaluation import Evaluation, GenEval
from pipeline.config.running import Downloads
from pipeline.download.files import Files
from pipeline.embedded.scenes import caption, draw_scene, render
from pipeline.errors import UserError
from pipeline.evaluate.geneval.asked import Asked
from pipeline.evaluate.geneval.benchmark import FAILURES, Benchmark
from pipeline.evaluate.geneval.prompts import TASKS
from pipeline.evaluate.geneval.scenes import SEED
from pipeline.evaluate.geneval.self_test import known_objects, self_test
from pipeline.frozen.clip import load_clip
from pipeline.reals import Real, read_reals
from tests.unit.evaluate.geneval.detector_models import save_mask2former

CPU = torch.device("cpu")
PERFECT = {caption(s): s for s in (draw_scene(SEED, "heldout", i, share) for i in range(500) for share in (0.0, 1.0))}
EMPTY = np.full((64, 64, 3), 130, np.uint8)


@pytest.fixture
def load(tmp_path, frozen):
    def go(clips=lambda ref: load_clip(ref, CPU), **keys):
        evaluation = Evaluation(source="coco", clip_score=frozen["clip"])
        asked = Asked.load(GenEval(**keys), Files(tmp_path / "files", Downloads()))
        return Benchmark.load(evaluation, asked, clips, CPU)

    return go


@pytest.fixture
def reals(shards):
    return read_reals(*shards)


def paint(bench, folder, spoilt=()):
    """The prompts' pictures, drawn perfectly; `spoilt` indices come out empty."""
    drawing = bench.asked.drawing

    def draw(indices):
        return np.stack([EMPTY if i in spoilt else np.asarray(render(PERFECT[drawing.texts[i]])) for i in indices])

    images = drawing.images(folder)
    images.complete(draw, 8, "painting")
    return images


def test_perfect_pictures_have_the_best_score(load, reals, tmp_path):
    bench = load(limit=12, images_a_prompt=2)
    summary = bench.run(paint(bench, tmp_path / "work"), reals, 64, tmp_path / "out/geneval.json")
    result = json.loads((tmp_path / "out/geneval.json").read_text())
    made_by = {name: result[name] for name in ("images", "prompts", "detector", "clip", "thresholds")}
    assert summary == {"score": 1.0, "tasks": dict.fromkeys(TASKS, 1.0), "self_test": 1.0, **made_by}
    assert result["tasks"]["counting"] == {"accuracy": 1.0, "images": 4, "prompts": 2}
    assert result["prompts"] == {"source": "scenes", "sha256": bench.asked.prompts.sha256, "count": 12, "of": 240}
    assert (result["images"], result["images_a_prompt"], result["px"]) == (24, 2, 64)
    assert result["detector"] == {"ref": "scenes"} and result["clip"] is None and result["failures"] == []
    assert result["thresholds"] == {
        "detection": 0.3, "counting": 0.9, "overlap": 1.0, "max_objects": 16, "position_margin": 0.1,
    }  # fmt: skip
    assert result["self_test"] == {
        "source": "attributes", "images": 12, "objects": 15, "recall": 1.0, "colour_accuracy": 1.0,
    }  # fmt: skip
    assert set(result["seconds"]) == {"detection", "self_test"}


def test_the_score_is_the_mean_over_tasks_and_failures_say_why(load, reals, tmp_path):
    bench = load(limit=13, images_a_prompt=2)  # three prompts of the first task
    spoilt = [i for i, row in enumerate(bench.asked.rows) if row.tag == "single_object"][:2]
    pictures = paint(bench, tmp_path / "work", [2 * i + k for i in spoilt for k in range(2)])
    summary = bench.run(pictures, reals, 64, tmp_path / "geneval.json")
    assert summary["tasks"]["single_object"] == pytest.approx(1 / 3)
    assert summary["score"] == pytest.approx((5 + 1 / 3) / 6)
    failures = json.loads((tmp_path / "geneval.json").read_text())["failures"]
    assert len(failures) == 4 and all(one["task"] == "single_object" for one in failures)
    assert failures[0]["prompt"] == bench.asked.rows[spoilt[0]].prompt and failures[0]["reason"].endswith("wanted, none found")
    picture = Image.open(io.BytesIO(base64.b64decode(failures[0]["image"].removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(picture), EMPTY)


def test_failures_of_every_task_are_shown_but_not_all_of_them(load, reals, tmp_path):
    bench = load(limit=60, images_a_prompt=1)
    bench.run(paint(bench, tmp_path / "work", range(60)), reals, 64, tmp_path / "geneval.json")
    result = json.loads((tmp_path / "geneval.json").read_text())
    assert result["score"] == 0.0 and len(result["failures"]) == FAILURES
    assert {one["task"] for one in result["failures"]} == set(TASKS)


def test_other_prompts_have_a_folder_of_their_own_and_other_detectors_do_not(load):
    bench, fewer, other = load(limit=6), load(limit=6, images_a_prompt=1), load(limit=6, detector_threshold=0.5)
    drawing = bench.asked.drawing
    assert len(drawing.texts) == 24 and drawing.purpose == "geneval" and drawing.trained
    assert fewer.asked.drawing.name != drawing.name == other.asked.drawing.name


def test_a_limit_is_spread_over_the_tasks(load):
    assert [row.tag for row in load(limit=6).asked.rows] == list(TASKS)
    assert len(load(limit=None).asked.rows) == 240
    assert len(load(limit=None, images_a_prompt=3).asked.drawing.texts) == 720


def test_counting_has_its_own_threshold(load):
    bench = load(limit=6, counting_threshold=0.5, detector_threshold=0.4)
    (counting,) = (row for row in bench.asked.rows if row.tag == "counting")
    (single,) = (row for row in bench.asked.rows if row.tag == "single_object")
    image = np.asarray(render(PERFECT[counting.prompt]))
    found = [one.__class__(one.name, 0.45, one.box) for one in bench.detector.detect([image], 0.3)[0]]
    assert bench._judge(counting, image, found) and bench._judge(single, image, []) and not bench._judge(
        single, image, [found[0].__class__(single.include[0].name, 0.45, (0, 0, 9, 9))]
    )  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    """A file of prompts about classes that the small detector knows, and real images with captions that name them."""
    save_mask2former(tmp_path / "detector")
    rows = [
        {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a photo of a red dog"},
        {"tag": "single_object", "include": [{"class": "computer mouse", "count": 1}], "prompt": "a computer mouse"},
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"prompts": str(tmp_path / "prompts.jsonl"), "detector": str(tmp_path / "detector")}


def test_a_network_detects_and_clip_names_colours(load, photos, reals, tmp_path, frozen):
    bench = load(**photos, images_a_prompt=2, detector_threshold=0.01)
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    bench.run(noise, reals, 32, tmp_path / "geneval.json")
    result = json.loads((tmp_path / "geneval.json").read_text())
    assert list(result["tasks"]) == ["single_object", "colors"] and 0 <= result["score"] <= 1
    assert result["detector"]["class"] == "Mask2FormerForUniversalSegmentation" and result["clip"]["ref"] == frozen["clip"]
    assert result["prompts"]["source"] == photos["prompts"]
    assert result["self_test"] == {"source": "attributes", "images": 0, "objects": 0, "recall": None, "colour_accuracy": None}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompts": "none.jsonl"}, r"evaluation.geneval.prompts: none.jsonl: .*not there"),
        ({"prompts_sha256": "0" * 64}, "the embedded prompts have sha256 15daf"),
        ({"detector": "no/such"}, "model 'no/such': no such folder"),
    ],
)
def test_mistakes_show_before_anything_is_drawn(load, keys, message):
    with pytest.raises(UserError, match=message):
        load(**keys)


def test_prompts_that_the_detector_does_not_know(load, photos):
    with pytest.raises(UserError, match="scenes does not know computer mouse, dog"):
        load(prompts=photos["prompts"])


def test_the_self_test_takes_classes_from_captions_where_there_are_no_attributes(tmp_path, write_shard):
    Image.fromarray(EMPTY).save(tmp_path / "photo.png")
    png = (tmp_path / "photo.png").read_bytes()
    texts = ("a dog and two cats", "nothing known", "a cat")
    images, captions = write_shard(tmp_path, "photos", [(f"p{i}", png, text, None) for i, text in enumerate(texts)])
    source, known = known_objects(read_reals([images], [captions]), frozenset({"dog", "cat"}))
    assert source == "captions" and [one.objects for one in known] == [[("cat", None), ("dog", None)], [("cat", None)]]


def test_attributes_of_photos_may_have_classes_and_colours(load):
    boxes = {"objects": [{"class": "mouse", "color": "red"}, {"class": "dog", "color": "mauve"}, {"box": 3}, 7]}
    real = Real("1", None, boxes, None, 0, 0)
    assert known_objects([real], frozenset({"computer mouse", "dog"}))[1][0].objects == [("computer mouse", "red"), ("dog", None)]
    for odd in ([], "x", {"objects": 3}, {}):
        assert known_objects([Real("1", None, odd or {"a": 1}, None, 0, 0)], frozenset({"dog"}))[1] == []


def test_a_blind_or_colour_blind_detector_fails_the_self_test(load, reals):
    bench = load(limit=6)
    source, known = known_objects(reals, bench.detector.names)
    assert self_test(source, known, 64, lambda image: [], bench.colours)["recall"] == 0.0
    colours = self_test(source, known, 64, bench._find, lambda image, objects: ["mauve"] * len(objects))
    assert colours["recall"] == 1.0 and colours["colour_accuracy"] == 0.0
