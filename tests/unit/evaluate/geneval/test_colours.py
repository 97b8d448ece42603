import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.embedded.scenes import COLOURS
from pipeline.evaluate.geneval.colours import TEMPLATES, ClipColours, crop
from pipeline.evaluate.geneval.prompts import COLORS
from pipeline.evaluate.geneval.scoring import Detection
from pipeline.frozen.clip import load_clip

IMAGE = np.arange(10 * 8 * 3, dtype=np.uint8).reshape(10, 8, 3)


def test_a_crop_is_what_lies_in_the_box():
    assert np.array_equal(np.asarray(crop(IMAGE, Detection("dog", 1.0, (1.2, 2.0, 4.5, 9.0)))), IMAGE[2:9, 1:5])


def test_what_a_mask_leaves_out_is_grey():
    mask = np.zeros((10, 8), bool)
    mask[3, 2] = True
    found = np.asarray(crop(IMAGE, Detection("dog", 1.0, (1.0, 2.0, 4.0, 5.0), mask)))
    assert np.array_equal(found[1, 1], IMAGE[3, 2])
    assert (found.reshape(-1, 3) == 153).all(1).sum() == 8


@pytest.mark.parametrize("box", [(-5, -5, 100, 100), (7.9, 9.9, 7.9, 9.9), (20, 20, 30, 30), (3, 3, 3, 3), (5, 5, 2, 2)])
def test_a_box_beyond_the_picture_still_shows_something(box):
    assert min(crop(IMAGE, Detection("dog", 1.0, box)).size) >= 1


def test_the_nearest_text_names_the_colour(frozen):
    clip = load_clip(frozen["clip"], torch.device("cpu"))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    objects = [Detection("dog", 1.0, box) for box in ((0, 0, 16, 16), (8, 0, 32, 20))]
    texts = [[template.format(color=color, name="dog") for template in TEMPLATES] for color in COLORS]
    unit = torch.nn.functional.normalize
    vectors = torch.stack([unit(unit(clip.text_features(group), dim=1).mean(0), dim=0) for group in texts])
    pictures = clip.pixels([Image.fromarray(image[0:16, 0:16]), Image.fromarray(image[0:20, 8:32])])
    expected = [COLORS[i] for i in (clip.image_features(pictures) @ vectors.T).argmax(1)]
    assert ClipColours(clip)(image, objects) == expected
    assert ClipColours(clip)(image, []) == []


def test_a_trained_clip_tells_colours():
    """The embedded one, of scenes: it has never seen these templates, and still does far better than chance."""
    name_colours = ClipColours(load_clip("embedded:clip", torch.device("cpu")))
    image = np.full((64, 64, 3), (130, 130, 130), np.uint8)
    right = 0
    for name, rgb in COLOURS.items():
        image[16:48, 16:48] = rgb
        right += name_colours(image, [Detection("square", 1.0, (8, 8, 56, 56))]) == [name]
    assert right >= 4, right
