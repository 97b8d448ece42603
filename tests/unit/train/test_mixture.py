import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset import Index
from pipeline.errors import UserError
from pipeline.train.mixture import Mixture, stream_of
from pipeline.train.order import Order

weights = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=6)


def mixture(shares, sizes=None, seed=3, stage="toy"):
    """Sources of `sizes` rows, one behind the other in the index, in blocks of 8."""
    ends = np.cumsum([0, *(sizes or [50] * len(shares))])
    orders = [
        Order(np.unique([*range(first, end, 8), end]), seed, f"{stage}/{n}", 3)
        for n, (first, end) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
    ]
    return Mixture(orders, list(shares), seed, stage)


@settings(max_examples=150, deadline=None)
@given(weights, st.integers(0, 12), st.integers(0, 1 << 30), st.integers(0, 99))
def test_every_aligned_run_has_each_share_to_within_one_sample(shares, k, run, seed):
    length = 1 << k
    counts = np.bincount(mixture(shares, seed=seed).sources(run * length, length), minlength=len(shares))
    exact = length * np.array(shares) / math.fsum(shares)
    assert counts.sum() == length and (np.abs(counts - exact) < 1 + 1e-6).all()


@settings(max_examples=100, deadline=None)
@given(weights, st.integers(0, 5000), st.integers(0, 99))
def test_samples_before_a_position_are_counted_without_going_there(shares, position, seed):
    mixed = mixture(shares, seed=seed)
    assert np.array_equal(mixed.before(position), np.bincount(mixed.sources(0, position), minlength=len(shares)))


def test_shares_are_exact_in_the_long_run_however_unequal():
    shares = [1.0, 1e-6, 3.0, 1e-10]
    counts = mixture(shares).before(1 << 40)
    assert np.abs(counts - (1 << 40) * np.array(shares) / math.fsum(shares)).max() <= 1


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=4), st.data())
def test_a_source_gives_each_sample_once_in_each_of_its_epochs(shares, data):
    sizes = [data.draw(st.integers(5, 60)) for _ in shares]
    ends = np.cumsum([0, *sizes])
    rows = mixture(shares, sizes).rows(0, 400)
    for first, end in pairwise(ends.tolist()):
        mine = rows[(rows >= first) & (rows < end)]
        for epoch in range(len(mine) // (end - first)):
            assert sorted(mine[epoch * (end - first) :][: end - first]) == list(range(first, end))


@settings(max_examples=20, deadline=None)
@given(weights, st.integers(0, 3000), st.lists(st.integers(1, 70), min_size=1, max_size=4))
def test_a_batch_does_not_depend_on_how_positions_are_grouped(shares, start, parts):
    whole = mixture(shares).rows(start, sum(parts))
    firsts = start + np.cumsum([0, *parts[:-1]])
    assert np.array_equal(whole, np.concatenate([mixture(shares).rows(int(f), n) for f, n in zip(firsts, parts, strict=True)]))


@settings(max_examples=20, deadline=None)
@given(weights, st.integers(0, 3000), st.integers(1, 100))
def test_what_is_ahead_holds_the_batch(shares, start, count):
    mixed = mixture(shares)
    ahead = {row for first, end in mixed.ahead(start, count) for row in range(first, end)}
    assert set(mixed.rows(start, count)) <= ahead


def test_the_pattern_depends_on_seed_and_stage():
    first = mixture([1, 2, 3]).sources(0, 500)
    assert np.array_equal(first, mixture([1, 2, 3]).sources(0, 500))
    for other in (mixture([1, 2, 3], seed=4), mixture([1, 2, 3], stage="b")):
        assert not np.array_equal(first, other.sources(0, 500))


def manifest(**sizes):
    """Sources of so many rows, a shard each."""
    shard = np.repeat(np.arange(len(sizes)), list(sizes.values())).astype(np.int32)
    row = np.concatenate([np.arange(size) for size in sizes.values()]).astype(np.int32)
    ends = np.cumsum([0, *sizes.values()]).tolist()
    sources = {name: (ends[n], ends[n + 1]) for n, name in enumerate(sizes)}
    return SimpleNamespace(index=Index(shard, row, row, *[np.ones(len(row), np.int16)] * 2), sources=sources)


def test_without_weights_all_samples_are_in_one_order():
    rows = stream_of(manifest(a=300, b=500), None, 0, "toy").rows(0, 800)
    assert sorted(rows) == list(range(800))
    assert 80 < (rows[:256] < 300).sum() < 112  # by the number of samples: 96 on average


def test_weights_are_shares_of_the_batch_not_of_the_samples():
    rows = stream_of(manifest(a=300, b=3000, c=5), {"b": 1, "c": 1, "a": 2}, 0, "toy").rows(4096, 1024)
    counts = [((rows >= first) & (rows < end)).sum() for first, end in ((0, 300), (300, 3300), (3300, 3305))]
    assert counts == [512, 256, 256]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"a": 1}, r"stages\.low\.weights: no weight for b; name every source of the stage"),
        ({"a": 1, "b": 0}, r"stages\.low\.weights\.b: 0 is no share"),
        ({"a": 1, "b": -1}, r"weights\.b: -1 is no share"),
        ({"a": 1, "b": math.inf}, r"weights\.b: inf is no share"),
        ({"a": 1, "b": math.nan}, r"weights\.b: nan is no share"),
        ({"a": 1, "b": 1e-30}, r"weights\.b: 1e-30 is too small beside the others"),
        ({"a": 1, "b": 1, "c": 1}, r"weights\.c: no sample of this source"),
        ({"a": 1, "b": 1, "empty": 1}, r"weights\.empty: no sample of this source is left"),
    ],
)
def test_weights_that_do_not_fit_are_named(given_, message):
    sizes = {"a": 10, "b": 10} | ({"empty": 0} if "empty" in given_ else {})
    with pytest.raises(UserError, match=message):
        stream_of(manifest(**sizes), given_, 0, "low")
