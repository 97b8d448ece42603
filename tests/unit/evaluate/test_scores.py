import numpy as np
import pytest

from pipeline.config.evaluation import Evaluation
from pipeline.embedded.scenes import draw_scene, render
from pipeline.evaluate.scores import accuracy, kernel_distance, manifolds, spread, two_draws
from pipeline.evaluate.views import Networks, views
from pipeline.metrics.features import FeatureNetwork
from pipeline.metrics.fid import fid


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


def test_numbers_about_a_fid_are_of_the_samples_from_the_reference():
    rng = np.random.default_rng(0)
    near, far = rng.standard_normal((2, 200, 4)) + np.array([0, 3])[:, None, None]
    kernel, value = kernel_distance(far, near, seed=0), fid(far, near)
    assert kernel["kid"] > 10 * kernel["kid_std_error"] > 0
    assert manifolds(far, near)["precision"] < 0.2 and manifolds(near, near)["coverage"] == 1
    found = spread(value, far, near, resamples=20, seed=0)
    assert found["fid_interval"][0] < value < found["fid_interval"][1]
    assert found["fid_bias"] == pytest.approx(value - found["fid_infinity"])
    assert spread(value, far, near, resamples=0, seed=0)["fid_interval"] is None


def test_sets_without_so_many_neighbours_have_no_precision():
    few = np.random.default_rng(0).standard_normal((5, 4))
    assert manifolds(few, few) == dict.fromkeys(("precision", "recall", "density", "coverage"))


def network(identity, px=32):
    return FeatureNetwork(identity, identity, px, 8, lambda pixels: pixels)


def test_one_network_looks_once_whatever_is_measured_with_it():
    clip, other = network("clip"), network("other")
    same = views(Evaluation(source="coco"), Networks(clip, clip, clip, clip, None))
    assert [(view.resize, list(view.distances)) for view in same] == [
        ("clean", ["fid", "clip_fid", "cmmd"]), ("legacy_pytorch", []),
    ]  # fmt: skip
    assert same[0].headline and same[0].captions and not same[1].headline and all(view.by_resize for view in same)
    apart = views(Evaluation(source="coco", resize="legacy_pytorch"), Networks(other, clip, None, None, network("dino")))
    assert [(view.network.name, view.resize, list(view.distances)) for view in apart] == [
        ("other", "legacy_pytorch", ["fid"]), ("other", "clean", []), ("clip", "clean", []), ("dino", "clean", ["fd_dino"]),
    ]  # fmt: skip
    assert [view.captions for view in apart] == [False, False, True, False]


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
