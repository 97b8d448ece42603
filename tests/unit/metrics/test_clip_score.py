import numpy as np
import pytest
import torch

from pipeline.frozen.clip import load_clip
from pipeline.metrics.clip_score import clip_score, clip_scores


def at(degrees, length=1.0):
    return [length * np.cos(np.radians(degrees)), length * np.sin(np.radians(degrees))]


@pytest.mark.parametrize(("degrees", "score"), [(0, 100), (60, 50), (90, 0), (180, 0)])
def test_it_is_the_cosine_in_percent_and_never_negative(degrees, score):
    assert clip_score(np.array([at(10, 3.0)]), np.array([at(10 + degrees, 0.2)])) == pytest.approx(score, abs=1e-9)


def test_pairs_are_clipped_before_the_mean():
    images, texts = np.array([at(0), at(0)]), np.array([at(0), at(180)])
    assert clip_score(images, texts) == pytest.approx(50)


def test_each_pair_has_its_score_and_the_mean_is_that_of_all():
    images, texts = np.array([at(0), at(0), at(0)]), np.array([at(0, 2.0), at(60), at(180)])
    assert clip_scores(images, texts) == pytest.approx([100, 50, 0])
    assert clip_score(images, texts) == pytest.approx(50)


def test_more_features_than_pairs_are_no_difficulty():
    rows = np.eye(3, 512)
    assert clip_scores(rows, rows) == pytest.approx([100] * 3)


def test_a_long_caption_is_cut_where_the_model_ends_and_keeps_its_end_token():
    """As the same caption would be that just fits: the tokens that do not fit are gone, that of the end is not."""
    clip = load_clip("embedded:clip", torch.device("cpu"))
    words = ["red", "square", "blue", "circle"] * 20
    fits = " ".join(words[: clip.tokens - 2])  # a token a word, and those of start and end
    longer, other = " ".join(words), " ".join([*words[: clip.tokens - 3], "green"])
    a, b, c = clip.text_features([fits, longer, other])
    assert torch.allclose(a, b, atol=1e-5) and not torch.allclose(a, c, atol=1e-3)
    assert clip.tokens == 24
