import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.architecture import kept_tokens
from pipeline.model.masking import keep_ids, put_tokens, take_tokens, unpatchify


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(4, 40), st.sampled_from([0.0, 0.25, 0.5, 0.75]), st.integers(0, 999))
def test_keeps_distinct_sorted_tokens(batch, tokens, ratio, seed):
    ids = keep_ids(torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed)), ratio)
    assert ids.shape == (batch, int(tokens * (1 - ratio)))
    assert (ids.diff(dim=1) > 0).all()
    assert ids.min() >= 0
    assert ids.max() < tokens


def test_subsets_are_equally_likely():
    scores = torch.rand(60_000, 4, generator=torch.Generator().manual_seed(0))
    pairs = keep_ids(scores, 0.5)
    counts = torch.bincount(pairs[:, 0] * 4 + pairs[:, 1])
    assert sorted(counts[counts > 0].tolist()) == pytest.approx([10_000] * 6, rel=0.04)


@pytest.mark.parametrize(
    ("ratio", "words"), [(1.0, "give a number from 0"), (-0.1, "give a number from 0"), (0.9, "keeps none of 4 tokens")]
)
def test_bad_ratio_is_told(ratio, words):
    with pytest.raises(ValueError, match=words):
        kept_tokens(4, ratio)


def test_take_and_put_are_inverse():
    tokens = torch.randn(2, 6, 3)
    ids = torch.tensor([[0, 2, 5], [1, 3, 4]])
    back = put_tokens(take_tokens(tokens, ids), ids, 6)
    kept = torch.zeros(2, 6, 1).scatter(1, ids[..., None], 1.0)
    assert torch.equal(back, tokens * kept)


def test_unpatchify_order():
    """Pixel (row, column, channel) of patch t sits at place (row·p + column)·C + channel of its token."""
    patch, channels, side = 2, 3, 2
    tokens = torch.arange(side**2 * patch**2 * channels).float().reshape(1, side**2, -1)
    image = unpatchify(tokens, patch, side)
    assert image.shape == (1, channels, 4, 4)
    for row in range(4):
        for column in range(4):
            token = (row // 2) * side + column // 2
            place = ((row % 2) * patch + column % 2) * channels
            assert torch.equal(image[0, :, row, column], tokens[0, token, place : place + channels])
