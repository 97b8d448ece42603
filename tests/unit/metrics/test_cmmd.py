import numpy as np
import pytest

from pipeline.metrics import cmmd as module
from pipeline.metrics.cmmd import cmmd


def draws(seed, images=50, width=8, shift=0.0):
    return np.random.default_rng(seed).standard_normal((images, width)) + shift


def naive(a, b):
    a, b = ([row / np.linalg.norm(row) for row in x] for x in (a, b))

    def kernel(x, y):
        return np.exp(-((x - y) ** 2).sum() / 200)

    def mean(x, y):
        return np.mean([[kernel(p, q) for q in y] for p in x])

    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


def test_it_is_the_published_estimate(monkeypatch):
    a, b = draws(0), draws(1, images=37, shift=0.4)
    expected = naive(a, b)
    assert cmmd(a, b) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(module, "CHUNK", 7)
    assert cmmd(a, b) == pytest.approx(expected, rel=1e-9)


def test_two_points_have_a_closed_form():
    east, north = np.array([[5.0, 0.0]]), np.array([[0.0, 0.1]])
    assert cmmd(east, north) == pytest.approx(1000 * (2 - 2 * np.exp(-2 / 200)), rel=1e-9)


def test_the_length_of_an_embedding_does_not_count():
    a, b = draws(0), draws(1)
    assert cmmd(a * 7, (b * np.arange(1, 51)[:, None]).astype(np.float32)) == pytest.approx(cmmd(a, b), rel=1e-4)


def test_equal_sets_are_at_nothing_and_two_draws_a_little_above_by_the_number_of_images():
    assert abs(cmmd(draws(0), draws(0))) < 1e-9
    few, many = (cmmd(draws(0, n), draws(1, n)) for n in (20, 2000))
    assert 0 < many < few / 20


def test_fewer_images_than_features_are_no_difficulty():
    a, b = draws(0, 4, 100), draws(1, 4, 100, shift=1.0)
    assert cmmd(a, b) == pytest.approx(naive(a, b), rel=1e-9)
