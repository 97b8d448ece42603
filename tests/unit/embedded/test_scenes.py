"""Scenes: deterministic, truthful captions, held-out combinations that training never sees, a COCO-format set."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.embedded import scenes as S


def test_a_scene_depends_on_seed_split_and_index_only():
    assert S.draw_scene(1, "train", 7) == S.draw_scene(1, "train", 7)
    others = [S.draw_scene(2, "train", 7), S.draw_scene(1, "heldout", 7), S.draw_scene(1, "train", 8)]
    assert all(other != S.draw_scene(1, "train", 7) for other in others)
    first, again = (np.asarray(S.render(S.draw_scene(1, "train", 7))) for _ in range(2))
    assert np.array_equal(first, again)


def test_known_scene_stays_the_same():
    """A change here redraws all data: the tiny models would have to be trained again."""
    scene = S.draw_scene(0, "train", 0)
    assert S.caption(scene, 0, True) == "a small purple circle in the top right on a pink background"
    assert len(S.combinations("heldout")) == 176


@pytest.mark.parametrize("split", S.SPLITS)
def test_splits_share_no_combination(split):
    for index in range(3000):
        scene = S.draw_scene(3, split, index, 0.5)
        for item in scene.objects:
            held_out = S.is_held_out(item.colour, item.shape, item.position, scene.background)
            assert held_out == (split == "heldout")


def test_every_attribute_occurs_in_both_splits():
    for split in S.SPLITS:
        columns = [set(column) for column in zip(*S.combinations(split), strict=True)]
        assert columns == [set(S.COLOURS), set(S.SHAPES), set(S.POSITIONS), set(S.BACKGROUNDS)]
    share = len(S.combinations("heldout")) / (len(S.COLOURS) * len(S.SHAPES) * len(S.POSITIONS) * len(S.BACKGROUNDS))
    assert 0.15 <= share <= 0.2


def test_two_objects_differ_in_position_and_colour():
    for index in range(500):
        first, second = S.draw_scene(3, "heldout", index, 1.0).objects
        assert first.position != second.position
        assert first.colour != second.colour


def test_share_of_two_object_scenes():
    count = sum(len(S.draw_scene(3, "train", i, 0.3).objects) == 2 for i in range(2000))
    assert 500 < count < 700
    assert all(len(S.draw_scene(3, "train", i, 0.0).objects) == 1 for i in range(50))


def test_attributes_survive_json():
    scene = S.draw_scene(3, "train", 5, 1.0)
    assert S.Scene.from_attributes(json.loads(json.dumps(scene.attributes()))) == scene


@pytest.mark.parametrize("wording", range(len(S.WORDINGS)))
def test_captions_mention_what_is_drawn(wording):
    for index in range(200):
        scene = S.draw_scene(4, "train", index, 0.5)
        text = S.caption(scene, wording, True)
        assert scene.background in text
        for item in scene.objects:
            assert f"{item.size} {item.colour} {item.shape}" in text
            assert item.position in text
        absent = set(S.COLOURS) - {item.colour for item in scene.objects}
        assert not absent & set(text.replace(",", "").split())
        assert len(text.replace(",", " ,").split()) <= 22, "a caption and its two marks must fit 24 tokens"


def test_the_wording_of_the_readme_and_its_grammar():
    texts = {S.caption(S.draw_scene(4, "train", i, 0.0), 0, False) for i in range(3000)}
    assert "a red circle in the top left on a pink background" in texts or S.is_held_out("red", "circle", "top left", "pink")
    assert not any(" a orange" in text for text in texts)


def test_a_scene_words_itself_in_several_ways_but_always_the_same():
    scenes = [S.draw_scene(4, "train", i) for i in range(100)]
    texts = [S.caption(scene) for scene in scenes]
    assert texts == [S.caption(scene) for scene in scenes]
    assert 20 < sum("small" in text or "large" in text for text in texts) < 80


@pytest.mark.parametrize("px", [32, 64, 128])
def test_render_fills_the_background_and_paints_the_object(px):
    scene = S.draw_scene(5, "train", 1, 0.0)
    image = np.asarray(S.render(scene, px), dtype=float)
    assert image.shape == (px, px, 3)
    assert np.abs(image[0, 0] - scene.background_rgb).max() <= 1
    x, y = (round(v * px) for v in scene.objects[0].centre)
    assert np.abs(image[y, x] - scene.objects[0].rgb).max() <= 1


def test_edges_are_anti_aliased():
    image = np.asarray(S.render(S.draw_scene(5, "train", 1, 0.0)))
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 5


def test_five_thousand_scenes_take_seconds():
    start = time.perf_counter()
    for index in range(1000):
        S.render(S.draw_scene(6, "train", index))
    assert time.perf_counter() - start < 3


def test_no_torch_is_imported():
    code = "import sys, pipeline.embedded.scenes, pipeline.embedded.detector; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: S.draw_scene(0, "test", 0),
        lambda: S.draw_scene(0, "train", 0, 1.5),
        lambda: S.render(S.draw_scene(0, "train", 0), 4),
        lambda: S.caption(S.draw_scene(0, "train", 0), len(S.WORDINGS)),
        lambda: S.write_coco(Path("never-made"), 0, 3, 4),
    ],
)
def test_mistakes_are_value_errors(call):
    with pytest.raises(ValueError):
        call()
    assert not Path("never-made").exists()


def test_coco_folder(tmp_path):
    S.write_coco(tmp_path, seed=9, count=6, two_objects=2)
    listing = json.loads((tmp_path / "captions.json").read_text())
    attributes = json.loads((tmp_path / "attributes.json").read_text())
    assert [image["id"] for image in listing["images"]] == [1, 2, 3, 4, 5, 6]
    assert [len(attributes[str(i)]["objects"]) for i in range(1, 7)] == [1, 1, 2, 1, 1, 2]
    for image in listing["images"]:
        picture = Image.open(tmp_path / "images" / image["file_name"])
        assert picture.size == (image["width"], image["height"]) == (64, 64)
        scene = S.Scene.from_attributes(attributes[str(image["id"])])
        assert np.array_equal(np.asarray(picture), np.asarray(S.render(scene)))
        texts = [a["caption"] for a in listing["annotations"] if a["image_id"] == image["id"]]
        assert len(set(texts)) == 2
        assert all(scene.background in text for text in texts)
    assert len({a["id"] for a in listing["annotations"]}) == 12


def test_coco_folder_is_the_same_again(tmp_path):
    for name in ("a", "b"):
        S.write_coco(tmp_path / name, seed=9, count=3, two_objects=1)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
