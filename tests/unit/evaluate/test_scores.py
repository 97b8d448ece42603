import numpy as np
import pytest

from pipeline.embedded.scenes import draw_scene, render
from pipeline.evaluate.scores import accuracy, distances, two_draws


class Expected:
    def __init__(self, attributes):
        self.attributes = attributes


@pytest.mark.parametrize(("total", "images", "size"), [(100, 30, 30), (60, 30, 30), (50, 40, 25), (9, 9, 4)])
def test_two_draws_are_disjoint_and_as_large_as_can_be(total, images, size):
    draws = two_draws(total, images, seed=0)
    assert draws.shape == (2, size) and len(set(draws.flat)) == 2 * size and draws.max() < total
    assert np.array_equal(draws, two_draws(total, images, seed=0))


def test_draws_from_a_sorted_set_have_the_same_make_up():
    low = two_draws(1000, 500, seed=0) < 500
    assert abs(low[0].sum() - low[1].sum()) < 60


def test_distances_are_of_the_samples_from_the_reference():
    rng = np.random.default_rng(0)
    near, far = rng.standard_normal((2, 200, 4)) + np.array([0, 3])[:, None, None]
    found, same = distances(far, near, seed=0), distances(near, near, seed=0)
    assert found["fid"] > 30 and found["kid"] > 10 * found["kid_std_error"] > 0
    assert abs(same["fid"]) < 1e-6


def test_accuracy_reads_the_attributes_off_the_images_by_number_of_objects():
    scenes = [draw_scene(0, "heldout", i, float(i % 3 == 0)) for i in range(30)]
    images = [np.asarray(render(scene, 64)) for scene in scenes]
    found = accuracy(images, [Expected(scene.attributes()) for scene in scenes])
    assert found["one_object"]["images"] == 20 and found["two_objects"]["images"] == 10
    assert found["one_object"]["colour"] == 1.0 and found["one_object"]["background"] == 1.0
    turned = accuracy(images, [Expected(scene.attributes()) for scene in scenes[3:] + scenes[:3]])
    assert turned["one_object"]["colour"] < 0.6


def test_only_captions_with_attributes_count():
    scene = draw_scene(0, "heldout", 0, 0.0)
    image = np.asarray(render(scene, 64))
    assert accuracy([image] * 2, [Expected(None), Expected(scene.attributes())])["one_object"]["images"] == 1
    assert accuracy([image], [Expected(None)]) is None
