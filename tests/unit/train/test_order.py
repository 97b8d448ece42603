import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset import Index
from pipeline.train.order import Order, block_starts

blocks = st.lists(st.integers(1, 40), min_size=1, max_size=30)  # rows of each


def order_of(sizes, seed=1, stage="toy", window=5, first=0):
    return Order(first + np.cumsum([0, *sizes]), seed, stage, window)


@settings(max_examples=60, deadline=None)
@given(blocks, st.integers(1, 5), st.integers(0, 5), st.sampled_from([0, 1000]))
def test_every_epoch_visits_every_sample_once(sizes, window, epoch, first):
    order = order_of(sizes, window=window, first=first)
    assert order.samples == sum(sizes)
    assert sorted(order.rows(epoch * order.samples, order.samples)) == list(range(first, first + order.samples))


@settings(max_examples=40, deadline=None)
@given(blocks, st.integers(1, 5), st.integers(1, 4), st.integers(1, 64), st.integers(0, 900))
def test_processes_share_the_same_stream(sizes, window, processes, share, start):
    """A batch of one process is the same as the contiguous shares of several, across epochs too."""
    whole = order_of(sizes, window=window).rows(start, processes * share)
    parts = [order_of(sizes, window=window).rows(start + rank * share, share) for rank in range(processes)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_order_depends_on_seed_stage_and_epoch_alone():
    sizes = [16] * 62
    first = order_of(sizes).rows(0, 992)
    assert np.array_equal(first, order_of(sizes).rows(0, 992))
    others = [order_of(sizes, seed=2).rows(0, 992), order_of(sizes, stage="b").rows(0, 992), order_of(sizes).rows(992, 992)]
    for other in others:
        assert (first == other).mean() < 0.02


@settings(max_examples=40, deadline=None)
@given(blocks, st.integers(1, 5), st.integers(1, 100), st.integers(0, 900))
def test_what_is_ahead_holds_the_batch(sizes, window, count, start):
    order = order_of(sizes, window=window)
    rows, ranges = order.rows(start, count), order.ahead(start, count)
    ahead = {row for first, end in ranges for row in range(first, end)}
    assert set(rows) <= ahead
    starts = {*np.cumsum([0, *sizes]).tolist()}
    assert {int(row) for row in ranges.ravel()} <= starts  # whole blocks
    assert sum(sizes) == len(ahead) or len(ranges) <= (2 + -(-count // min(sizes))) * window


def test_the_next_window_is_asked_for_bit_by_bit_and_in_the_order_of_the_index():
    order = order_of([10] * 40, window=8)
    sizes = [len(order.ahead(start, 10)) for start in range(0, 80, 10)]
    assert sizes == [9, 10, 11, 12, 13, 14, 15, 16]
    ranges = order.ahead(70, 10)
    assert all((np.diff(part[:, 0]) > 0).all() for part in (ranges[:8], ranges[8:]))
    coming = {first for first, _ in order.ahead(80, 1)[:8].tolist()}
    assert coming == {first for first, _ in ranges[8:].tolist()}


def test_reading_is_local():
    """Any stretch of the stream as long as a window touches at most two windows' blocks."""
    order = order_of([64] * 100, seed=5, window=4)
    for start in range(0, 64 * 96, 100):
        assert len(np.unique(order.rows(start, 4 * 64) // 64)) <= 8


@pytest.mark.parametrize("samples", [255, 256, 257, 1000])
def test_rows_are_well_mixed(samples):
    """Neighbours in the index are no neighbours in the stream: the mean distance is that of a random order."""
    rows = order_of([1] * samples, seed=0, window=64).rows(0, samples)
    inside = order_of([samples], seed=0).rows(0, samples)
    for mixed in (rows, inside):
        assert np.abs(np.diff(mixed)).mean() == pytest.approx(samples / 3, rel=0.15)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 999), unique=True).map(sorted), min_size=1, max_size=4), st.sampled_from([1, 7, 1 << 20]))
def test_a_block_is_what_the_index_names_of_one_record_batch(shards, rows_at_once):
    pairs = [(shard, row) for shard, rows in enumerate(shards) for row in rows]
    shard, row = np.array(pairs, dtype=np.int32).reshape(-1, 2).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.train.order.ROWS_AT_ONCE", rows_at_once)
        starts = block_starts(Index(shard, row, row, *[np.ones(len(row), np.int16)] * 2))
    changes = [n for n in range(1, len(pairs)) if (shard[n], row[n] // 256) != (shard[n - 1], row[n - 1] // 256)]
    assert starts.tolist() == [0, *changes, len(pairs)]
