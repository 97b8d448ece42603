import numpy as np
import pytest
import torch

from pipeline.artifacts import ArrowShard
from pipeline.train.data import Samples, read_ahead
from pipeline.train.order import Order


@pytest.fixture
def samples(manifest):
    return Samples(manifest, Order(manifest.samples, 3, "toy", block=16, window_blocks=2))


def test_a_batch_holds_the_rows_of_the_order(samples, manifest):
    batch = samples.batch(100, 40)  # crosses the end of the epoch of 120
    rows = Order(manifest.samples, 3, "toy", block=16, window_blocks=2).rows(100, 40)
    shards = [(manifest.latents(number), manifest.text(number)) for number in (0, 1)]
    for place, row in enumerate(rows):
        number, inside = (0, row) if row < 70 else (1, row - 70)
        assert np.array_equal(batch.latents[place].numpy(), shards[number][0].row(inside))
        assert np.array_equal(batch.text[place].numpy(), shards[number][1].row(inside))
    assert batch.positions.tolist() == list(range(100, 140))


def test_first_text_is_that_of_the_first_rows(samples, toy):
    expected = np.stack([ArrowShard(toy.parent / "text0.arrow", "tokens").row(row) for row in range(8)])
    assert np.array_equal(samples.first_text(8).numpy(), expected.astype(np.float32))
    assert len(samples.first_text(1000)) == 120


def test_microbatches_are_the_batch_in_order(samples):
    batch = samples.batch(0, 10)
    parts = list(batch.split(4))
    assert [len(part.positions) for part in parts] == [4, 4, 2]
    for whole, pieces in zip(batch, zip(*parts, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(pieces))


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_reading_ahead_keeps_the_order(depth):
    made = []
    values = read_ahead(lambda key: made.append(key) or key * key, range(20), depth)
    assert next(values) == 0
    assert len(made) <= depth + 1  # no further ahead than that
    assert list(values) == [key * key for key in range(1, 20)]


def test_an_error_comes_where_its_value_would():
    values = read_ahead(lambda key: 1 // (3 - key), range(6))
    assert [next(values) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(values)
