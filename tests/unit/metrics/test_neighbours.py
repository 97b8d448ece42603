"""Precision and recall, density and coverage, against their definitions over all pairs."""

import tracemalloc

import numpy as np
import pytest

from pipeline.metrics import neighbours
from pipeline.metrics.density_coverage import density_coverage
from pipeline.metrics.neighbours import squared_radii
from pipeline.metrics.precision_recall import precision_recall


def draws(seed, images=60, width=4, shift=0.0):
    return np.random.default_rng(seed).standard_normal((images, width)) + shift


def distances(a, b):
    return np.array([[np.sqrt(((x - y) ** 2).sum()) for y in b] for x in a])


def radii(a, k):
    return np.array([sorted(np.delete(row, i))[k - 1] for i, row in enumerate(distances(a, a))])


@pytest.fixture(params=[500, 7])
def chunk(request, monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK", request.param)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_as_defined(chunk, k):
    made, real = draws(0, 41, shift=0.7), draws(1)
    apart = distances(made, real)
    precision = (apart <= radii(real, k)).any(axis=1).mean()
    recall = (apart <= radii(made, k)[:, None]).any(axis=0).mean()
    assert precision_recall(made, real, k) == (precision, recall) and 0 < recall < 1


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_are_as_defined(chunk, k):
    made, real = draws(0, 41, shift=0.7), draws(1)
    within = distances(made, real) < radii(real, k)
    assert density_coverage(made, real, k) == (pytest.approx(within.sum() / (k * 41)), within.any(axis=0).mean())


def test_equal_sets_are_precise_and_covered():
    a = draws(0)
    assert precision_recall(a, a) == (1, 1) and density_coverage(a, a).coverage == 1


def test_sets_with_nothing_in_common_are_neither():
    made, real = draws(0), draws(1, shift=100)
    assert precision_recall(made, real) == (0, 0) and density_coverage(made, real) == (0, 0)


def test_of_one_distribution_density_is_about_one_and_coverage_what_the_paper_expects():
    made, real = draws(0, 1500), draws(1, 1500)
    found = density_coverage(made, real)
    assert found.density == pytest.approx(1, abs=0.05)
    assert found.coverage == pytest.approx(1 - 0.5**5, abs=0.02)  # 1 - (1 - N/2N)^k in the limit (section 3.3)


def test_a_model_that_draws_one_kind_is_precise_and_recalls_little():
    real = np.concatenate([draws(1, 100), draws(2, 100, shift=30)])
    found, other = precision_recall(draws(0, 200), real), density_coverage(draws(0, 200), real)
    assert found.precision > 0.85 and found.recall < 0.55 and other.coverage < 0.55 and other.density > 0.8


def test_one_outlier_among_the_real_ones_moves_precision_and_hardly_density():
    made = draws(0, 100, shift=20)
    real = np.concatenate([draws(1, 100), draws(2, 1, shift=40)])
    assert precision_recall(made, real).precision > 0.9 and density_coverage(made, real).density <= 0.2


def test_fewer_images_than_features_lie_apart_from_each_other():
    made, real = draws(0, 20, 200), draws(1, 20, 200)
    assert squared_radii(real, 3) == pytest.approx(radii(real, 3) ** 2, rel=1e-9)
    assert 0 <= precision_recall(made, real).recall <= 1


def test_features_far_from_zero_lose_nothing():
    made, real = draws(0, 200, shift=0.3), draws(1, 200)
    far = [(x + 4096).astype(np.float32) for x in (made, real)]
    assert precision_recall(*far) == pytest.approx(precision_recall(made, real), abs=0.011)


@pytest.mark.parametrize("images", [1, 3])
def test_a_set_with_too_few_neighbours_is_refused(images):
    with pytest.raises(ValueError, match=f"{images} images have no 3 neighbours"):
        precision_recall(draws(0, images), draws(1))


def test_memory_is_that_of_a_stripe_and_not_of_all_pairs():
    made, real = draws(0, 4000, 2), draws(1, 4000, 2)
    tracemalloc.start()
    density_coverage(made, real)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000 * 4000 * 8 / 1.5
