"""The detector reads real scenes almost without error, also small or blurred, and is not fooled into agreement."""

import numpy as np
import pytest
from PIL import ImageFilter

from pipeline.embedded.detector import OBJECT_ATTRIBUTES, compare, detect, score
from pipeline.embedded.scenes import draw_scene, render

SCENES = [draw_scene(21, "heldout", i, 0.3) for i in range(400)]
ATTRIBUTES = [scene.attributes() for scene in SCENES]


@pytest.mark.parametrize("px", [64, 32])
@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_self_test_on_held_out_scenes(px, blur):
    softened = ImageFilter.GaussianBlur(blur * px / 64)
    found = score([np.asarray(render(s, px).filter(softened)) for s in SCENES], ATTRIBUTES)
    assert found["one_object"]["images"] + found["two_objects"]["images"] == len(SCENES)
    for group in found.values():
        for key in (*OBJECT_ATTRIBUTES, "background", "number"):
            assert group[key] >= 0.97, (px, blur, key, group)


def test_noise_does_not_break_it():
    rng = np.random.default_rng(0)
    noisy = [np.clip(np.asarray(render(s)) + rng.normal(0, 6, (64, 64, 3)), 0, 255) for s in SCENES[:150]]
    for group in score(noisy, ATTRIBUTES[:150]).values():
        assert min(group[key] for key in (*OBJECT_ATTRIBUTES, "background")) >= 0.95


def test_wrong_images_score_near_chance():
    images = [np.asarray(render(s)) for s in SCENES if len(s.objects) == 1]
    wanted = [a for a in ATTRIBUTES if len(a["objects"]) == 1]
    found = score(images, wanted[1:] + wanted[:1])["one_object"]
    assert found["colour"] < 0.25
    assert found["shape"] < 0.4
    assert found["position"] < 0.35
    assert found["background"] < 0.3


def test_an_empty_image_has_no_objects_and_scores_nothing():
    empty = np.full((64, 64, 3), (130, 130, 130), dtype=np.uint8)
    assert detect(empty) == {"background": "gray", "objects": []}
    found = score([empty], [ATTRIBUTES[0]])
    (group,) = found.values()
    assert all(group[key] == 0 for key in OBJECT_ATTRIBUTES)


def test_two_objects_may_come_in_any_order_but_not_mixed_up():
    scene = next(a for a in ATTRIBUTES if len(a["objects"]) == 2)
    swapped = {**scene, "objects": scene["objects"][::-1]}
    assert compare(swapped, scene) == dict.fromkeys((*OBJECT_ATTRIBUTES, "background", "number", "all"), 1.0)
    first, second = scene["objects"]
    crossed = [{**first, "colour": second["colour"]}, {**second, "colour": first["colour"]}]
    assert compare({**scene, "objects": crossed}, scene)["colour"] == 0


def test_only_the_largest_object_counts_for_a_one_object_prompt():
    wanted = next(a for a in ATTRIBUTES if len(a["objects"]) == 1)
    other = {"colour": "none", "shape": "none", "size": "none", "position": "none"}
    shares = compare({**wanted, "objects": [other, wanted["objects"][0]]}, wanted)
    assert shares["colour"] == shares["number"] == shares["all"] == 0


def test_mistakes_are_value_errors():
    with pytest.raises(ValueError, match="square"):
        detect(np.zeros((64, 32, 3)))
    with pytest.raises(ValueError):
        score([np.zeros((64, 64, 3))], [])
