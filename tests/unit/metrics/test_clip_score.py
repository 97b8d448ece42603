import numpy as np
import pytest

from pipeline.metrics.clip_score import clip_score


def at(degrees, length=1.0):
    return [length * np.cos(np.radians(degrees)), length * np.sin(np.radians(degrees))]


@pytest.mark.parametrize(("degrees", "score"), [(0, 100), (60, 50), (90, 0), (180, 0)])
def test_it_is_the_cosine_in_percent_and_never_negative(degrees, score):
    assert clip_score(np.array([at(10, 3.0)]), np.array([at(10 + degrees, 0.2)])) == pytest.approx(score, abs=1e-9)


def test_pairs_are_clipped_before_the_mean():
    images, texts = np.array([at(0), at(0)]), np.array([at(0), at(180)])
    assert clip_score(images, texts) == pytest.approx(50)
