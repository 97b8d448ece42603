import numpy as np
import pytest
from scipy.linalg import sqrtm

from pipeline.metrics.fid import Gaussian, fid, frechet, gaussian, kid


def draws(seed, images=400, width=6, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).standard_normal((images, width)) * scale + shift


def test_the_distance_of_gaussians_with_diagonal_covariances_has_a_closed_form():
    a = Gaussian(np.array([1.0, 2.0, -1.0]), np.diag([1.0, 4.0, 9.0]))
    b = Gaussian(np.array([0.0, 2.0, 1.0]), np.diag([4.0, 1.0, 9.0]))
    assert frechet(a, b) == pytest.approx((1 + 0 + 4) + ((1 - 2) ** 2 + (2 - 1) ** 2 + 0), rel=1e-9)


def test_the_distance_is_the_formula_with_a_matrix_square_root():
    mix = np.random.default_rng(2).standard_normal((6, 6))
    a, b = gaussian(draws(0) @ mix), gaussian(draws(1, shift=0.5, scale=2.0))
    root = sqrtm(a.cov @ b.cov).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.cov + b.cov - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)


def test_fid_is_that_of_clean_fid():
    from cleanfid.fid import fid_from_feats

    a, b = draws(0), draws(1, images=300, shift=0.3)
    assert fid(a, b) == pytest.approx(fid_from_feats(a, b), rel=1e-12)


def test_fid_of_a_set_with_itself_is_nothing_and_of_two_draws_is_a_little():
    a, b = draws(0), draws(1)
    assert abs(fid(a, a)) < 1e-6 < fid(a, b) < 0.2


def test_float32_features_far_from_zero_lose_nothing():
    a, b = draws(0), draws(1, shift=0.3)
    far = [(features + 4096).astype(np.float32) for features in (a, b)]
    assert fid(*far) == pytest.approx(fid(a, b), rel=1e-3)


def test_fewer_images_than_features_give_a_finite_distance_that_is_symmetric():
    a, b = draws(0, images=10, width=40), draws(1, images=10, width=40)
    assert fid(a, b) == pytest.approx(fid(b, a), rel=1e-4) and 0 < fid(a, b) < 1000


def polynomial(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def unbiased_mmd(a, b):
    n = len(a)
    same = [(k.sum() - np.trace(k)) / (n * (n - 1)) for k in (polynomial(a, a), polynomial(b, b))]
    return sum(same) - 2 * polynomial(a, b).mean()


def test_kid_is_the_mean_of_the_unbiased_kernel_distance_over_subsets():
    a, b = draws(0, images=41), draws(1, images=41, shift=0.2)
    # Every subset of 40 of 41 leaves one image out of either set, so many subsets come near the value of the whole.
    assert kid(a, b, subsets=2000, subset_size=40).value == pytest.approx(unbiased_mmd(a, b), abs=0.01)


def test_kid_of_one_distribution_has_mean_zero():
    values = np.array([kid(draws(2 * i, 100), draws(2 * i + 1, 100), subsets=20).value for i in range(60)])
    assert abs(values.mean()) < 3 * values.std(ddof=1) / np.sqrt(60)
    assert values.min() < 0 < values.max()


def test_the_standard_error_of_kid_is_the_spread_over_repeated_draws():
    estimates = [kid(draws(2 * i, 200), draws(2 * i + 1, 200, shift=0.5)) for i in range(40)]
    spread = np.std([estimate.value for estimate in estimates], ddof=1)
    assert 0.7 < np.mean([estimate.std_error for estimate in estimates]) / spread < 1.4


def test_kid_depends_on_its_seed_alone_and_leaves_the_global_random_state():
    a, b = draws(0, 60), draws(1, 60)
    np.random.seed(1)
    first, before = kid(a, b, seed=3), np.random.get_state()[1].copy()
    np.random.seed(2)
    assert kid(a, b, seed=3).value == pytest.approx(first.value, rel=1e-9)
    assert kid(a, b, seed=4).value != pytest.approx(first.value, rel=1e-9)
    np.random.seed(1)
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize(("images", "size"), [(3, None), (50, 1), (50, 50)])
def test_a_subset_that_says_nothing_is_refused(images, size):
    with pytest.raises(ValueError, match="KID: subsets of"):
        kid(draws(0, images), draws(1, images), subset_size=size)
