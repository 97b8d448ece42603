import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.train.order import Order

sizes = st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(1, 5))  # samples, block, blocks a window


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(0, 5))
def test_every_epoch_visits_every_sample_once(size, epoch):
    samples, block, window = size
    rows = Order(samples, 1, "toy", block, window).rows(epoch * samples, samples)
    assert sorted(rows) == list(range(samples))


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 4), st.integers(1, 64), st.integers(0, 900))
def test_processes_share_the_same_stream(size, processes, share, start):
    """A batch of one process is the same as the contiguous shares of several, across epochs too."""
    samples, block, window = size
    whole = Order(samples, 1, "toy", block, window).rows(start, processes * share)
    parts = [Order(samples, 1, "toy", block, window).rows(start + rank * share, share) for rank in range(processes)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_order_depends_on_seed_stage_and_epoch_alone():
    first = Order(1000, 1, "toy", 16, 4).rows(0, 1000)
    assert np.array_equal(first, Order(1000, 1, "toy", 16, 4).rows(0, 1000))
    others = [Order(1000, 2, "toy", 16, 4).rows(0, 1000), Order(1000, 1, "b", 16, 4).rows(0, 1000)]
    others.append(Order(1000, 1, "toy", 16, 4).rows(1000, 1000))
    for other in others:
        assert (first == other).mean() < 0.02


def test_reading_is_local():
    """Any stretch of the stream as long as a window touches at most two windows' blocks."""
    order = Order(64 * 100, 5, "toy", block=64, window_blocks=4)
    for start in range(0, 64 * 96, 100):
        assert len(np.unique(order.rows(start, 4 * 64) // 64)) <= 8


@pytest.mark.parametrize("samples", [255, 256, 257, 1000])
def test_rows_are_well_mixed(samples):
    """Neighbours in the index are no neighbours in the stream: the mean distance is that of a random order."""
    rows = Order(samples, 0, "toy").rows(0, samples)
    assert np.abs(np.diff(rows)).mean() == pytest.approx(samples / 3, rel=0.15)
