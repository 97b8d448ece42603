import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.diffusion import normals, uniforms
from pipeline.diffusion.noise import philox, stream_key

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, expected):
    """The philox4x32-10 vectors of the authors' Random123 library."""
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=8), st.integers(1, 9), st.sampled_from([uniforms, normals]))
def test_a_position_alone_decides(positions, count, draw):
    together = draw(7, "noise", torch.tensor(positions), count)
    alone = torch.cat([draw(7, "noise", torch.tensor([p]), count) for p in reversed(positions)]).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(draw(7, "noise", torch.tensor(positions), count + 5)[:, :count], together)


@pytest.mark.parametrize("other", [(1, "noise", 0), (0, "mask", 0), (0, "noise", 1), (0, "noise", 2**32)])
def test_streams_are_different_and_uncorrelated(other):
    def stream(seed, purpose, first):
        return normals(seed, purpose, torch.arange(200) * 1000 + first, 100).flatten()

    a, b = stream(0, "noise", 0), stream(*other)
    assert not (a == b).any()
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 4 / math.sqrt(20_000)


def test_neighbours_are_uncorrelated():
    values = normals(0, "noise", torch.arange(500), 40)
    for a, b in ((values[:-1], values[1:]), (values[:, :-1], values[:, 1:])):
        pair = torch.stack([a.flatten(), b.flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / math.sqrt(pair.shape[1])


def test_moments():
    z = normals(3, "noise", torch.arange(1000), 200).double().flatten()
    assert [float((z**k).mean()) for k in (1, 2, 3, 4)] == pytest.approx([0, 1, 0, 3], abs=0.05)
    assert float((z.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.004)
    u = uniforms(3, "mask", torch.arange(1000), 200).flatten()
    assert float(u.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(u.var()) == pytest.approx(1 / 12, abs=0.001)
    assert 0 < float(u.min()) < 1e-4
    assert 1 - 1e-4 < float(u.max()) < 1


def test_every_number_is_finite_at_the_ends(monkeypatch):
    for word in (0, ONES):
        monkeypatch.setattr(
            "pipeline.diffusion.noise._words", lambda *_, word=word: torch.full((1, 1, 4), word, dtype=torch.int64)
        )
        assert normals(0, "x", torch.zeros(1, dtype=torch.int64), 4).isfinite().all()
        assert 0 < float(uniforms(0, "x", torch.zeros(1, dtype=torch.int64), 1)) < 1


def test_numbers_stay_the_same_between_releases():
    assert stream_key(0, "noise") == (538895893, 2810162417)
    assert uniforms(0, "noise", torch.tensor([0, 5]), 2).tolist() == [
        [0.9090839946875349, 0.869844383909367],
        [0.08526987803634256, 0.3186231720028445],
    ]


def test_keys_tell_seed_and_purpose_apart():
    purposes = ("", "0", "1", "noise", "mask")
    keys = {stream_key(seed, purpose) for seed in range(-3, 12) for purpose in purposes}
    assert len(keys) == 75


def test_types():
    positions = torch.arange(2)
    assert uniforms(0, "x", positions, 3).dtype == torch.float64
    assert normals(0, "x", positions, 3).dtype == torch.float32
    assert normals(0, "x", positions, 3).shape == (2, 3)
