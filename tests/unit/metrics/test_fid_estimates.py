"""The fast Fréchet distance, the interval of the FID, and its value at infinitely many images."""

import numpy as np
import pytest

from pipeline.metrics.fid import Gaussian, Reference, fid, frechet, gaussian
from pipeline.metrics.fid_infinity import fid_infinity
from pipeline.metrics.fid_interval import fid_interval

MIX = np.random.default_rng(9).standard_normal((12, 12))


def draws(seed, images=600, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).standard_normal((images, 12)) @ MIX * scale + shift


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 2.0), (3.0, 0.1)])
def test_the_fast_distance_is_that_of_clean_fid(shift, scale):
    a, b = draws(0, shift=shift, scale=scale), draws(1, images=400)
    assert Reference(b).distance(gaussian(a)) == pytest.approx(fid(a, b), rel=1e-6)


def test_the_fast_distance_has_the_closed_form_of_diagonal_covariances():
    reference = Reference(np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 5.0], [2.0, -1.0]]))
    other = Gaussian(np.array([0.0, 2.0]), np.diag([8 / 3, 24.0]))  # the reference: mean 2, 2 and variances 2/3, 6
    expected = 4 + sum((np.sqrt(x) - np.sqrt(y)) ** 2 for x, y in ((8 / 3, 2 / 3), (24, 6)))
    assert reference.distance(other) == pytest.approx(expected, rel=1e-12)


def test_with_fewer_images_than_features_the_fast_distance_stays_that_of_the_formula():
    a, b = draws(0, images=5), draws(1, images=8)
    found = Reference(b).distance(gaussian(a))
    # tr (S_a S_b)^½ is the sum of the singular values of the product of roots: here of the centred rows themselves.
    rows = [(x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    product = np.linalg.svd(rows[0] @ rows[1].T, compute_uv=False).sum()
    shift = a.mean(axis=0) - b.mean(axis=0)
    assert found == pytest.approx(shift @ shift + sum((x * x).sum() for x in rows) - 2 * product, rel=1e-6)
    assert found == pytest.approx(frechet(gaussian(a), gaussian(b)), rel=1e-3)


def test_the_interval_holds_the_fid_that_other_draws_of_the_model_have_on_average():
    reference = Reference(draws(0, images=5000))
    others = [reference.distance(gaussian(draws(seed, shift=0.3))) for seed in range(100, 160)]
    intervals = np.array([fid_interval(draws(seed, shift=0.3), reference, 60, seed) for seed in range(1, 31)])
    held = (intervals[:, 0] < np.mean(others)) & (np.mean(others) < intervals[:, 1])
    assert held.mean() >= 0.9
    # It is no wider than it must be: 4 standard deviations, up to a half more for what the resamples add.
    assert 0.7 < np.diff(intervals).mean() / (3.92 * np.std(others)) < 1.6


def test_the_interval_lies_around_the_fid_although_resamples_are_biased():
    a, b = draws(1, images=60), draws(2, images=60)
    low, high = fid_interval(a, Reference(b), 200)
    assert low < fid(a, b) < high
    assert (low, high) == fid_interval(a, Reference(b), 200) != fid_interval(a, Reference(b), 200, seed=1)


def test_more_images_make_it_narrower():
    reference = Reference(draws(0, images=5000))
    widths = [np.diff(fid_interval(draws(1, images=images, shift=0.3), reference, 60))[0] for images in (200, 3200)]
    assert 3 < widths[0] / widths[1] < 12  # by the root of 16, and by more where resamples of few images add their own


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.1)])
def test_the_fid_of_infinitely_many_images_is_that_of_the_distributions(shift, scale):
    covariance = MIX.T @ MIX
    true = 12 * shift**2 + (scale - 1) ** 2 * np.trace(covariance)
    reference = Reference(draws(0, images=200_000))
    found = np.array([[fid_infinity(draws(seed, 600, shift, scale), reference, seed),
                       reference.distance(gaussian(draws(seed, 600, shift, scale)))] for seed in range(1, 21)])  # fmt: skip
    infinity, value = found.mean(axis=0)
    assert abs(infinity - true) < 0.25 * (value - true), "most of the bias is gone"


@pytest.mark.parametrize(("images", "known"), [(72, False), (78, True)])
def test_it_is_not_extrapolated_from_fewer_images_than_features(images, known):
    found = fid_infinity(draws(1, images), Reference(draws(0)))
    assert (found is not None) == known
