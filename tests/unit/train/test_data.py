import os
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bench.synthetic import DataSet
from pipeline.config.schema import Stage
from pipeline.dataset import Manifest
from pipeline.diffusion import uniforms
from pipeline.errors import UserError
from pipeline.train import blocks
from pipeline.train.data import DEPTH, RING, Samples, caption_of, paced, read_ahead
from pipeline.train.order import Order, block_starts

SMALL = dict(latent=(2, 2, 2), text=(3, 4))
STAGE = Stage(px=16, mask_ratio=0, images=64, batch_images=64)


def made(folder, **sizes):
    return Manifest.read(DataSet(**{**SMALL, **sizes}).write(folder))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Two shards of three blocks each, the last one short; one caption a sample."""
    return made(tmp_path_factory.mktemp("plain"), rows=1200, shards=2)


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """All at once: gaps in the index, one to three captions of any length, two sources, samples held out."""
    return made(
        tmp_path_factory.mktemp("rich"),
        rows=2000,
        shards=4,
        captions=3,
        padding="drop",
        kept=0.8,
        held_out=40,
        sources=("a", "b"),
    )


def samples_of(manifest, reading="mapped", **stage):
    return Samples(manifest, STAGE.model_copy(update=stage), 3, "toy", reading)


def sample(manifest, row, caption=0):
    index = manifest.index
    shard = int(index.shard[row])
    return manifest.latents(shard).row(int(index.row[row])), manifest.text(shard).row(int(index.text[row]) + caption)


@pytest.mark.parametrize("reading", ["mapped", "read"])
def test_a_batch_holds_the_rows_of_the_order(plain, reading):
    batch = samples_of(plain, reading).batch(1000, 300)  # crosses the end of the epoch of 1200
    assert batch.positions.tolist() == list(range(1000, 1300))
    assert batch.latents.shape == (300, 2, 2, 2) and batch.text.shape == (300, 3, 4)
    assert batch.latents.dtype == batch.text.dtype == torch.float16
    for place, row in enumerate(Order(block_starts(plain.index), 3, "toy").rows(1000, 300)):
        latent, text = sample(plain, row)
        assert np.array_equal(batch.latents[place].numpy(), latent) and np.array_equal(batch.text[place].numpy(), text)


def test_each_sample_comes_with_one_of_its_own_captions(rich):
    samples = samples_of(rich)
    rows, batch = samples.stream.rows(0, 600), samples.batch(0, 600)
    chosen = [
        [c for c in range(rich.index.texts[row]) if np.array_equal(sample(rich, row, c)[1], text)]
        for row, text in zip(rows, batch.text.numpy(), strict=True)
    ]
    assert all(len(found) == 1 for found in chosen)
    of_three = [found[0] for found, row in zip(chosen, rows, strict=True) if rich.index.texts[row] == 3]
    counts = np.bincount(of_three, minlength=3) / len(of_three)
    assert (np.abs(counts - 1 / 3) < 0.12).all()  # four standard deviations of some 200


def given_and_written(rich, share):
    """For samples with a given and two written captions, how often each is taken; for the others, that it is one of theirs."""
    samples = samples_of(rich, written_share=share)
    batch, rows = samples.batch(0, 1500), samples.stream.rows(0, 1500)
    taken = np.zeros(3)
    for row, text in zip(rows, batch.text.numpy(), strict=True):
        found = [c for c in range(rich.index.texts[row]) if np.array_equal(sample(rich, row, c)[1], text)]
        assert len(found) == 1
        taken[found[0]] += rich.index.texts[row] == 3
    return taken / taken.sum()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_written_captions_are_taken_as_often_as_asked(rich, share):
    """Some 500 draws: four standard deviations are 0.09."""
    expected = np.array([1 - share, share / 2, share / 2])
    assert (np.abs(given_and_written(rich, share) - expected) < 0.09 * (expected > 0) * (expected < 1) + 1e-9).all()


def test_without_a_share_batches_are_as_ever(rich):
    """The choice as it was before there was a share, which stages that were trained so go on with."""
    samples = samples_of(rich, written_share=None)
    batch, rows = samples.batch(7, 300), samples.stream.rows(7, 300)
    chance = uniforms(3, "toy/caption", torch.arange(7, 307), 1)[:, 0].numpy()
    for row, text, choice in zip(rows, batch.text.numpy(), (chance * rich.index.texts[rows]).astype(int), strict=True):
        assert np.array_equal(text, sample(rich, row, choice)[1])


@settings(max_examples=50, deadline=None)
@given(given=st.integers(0, 5), written=st.integers(0, 5), share=st.sampled_from([None, 0.0, 0.1, 0.5, 0.9, 1.0]))
def test_shares_of_captions(given, written, share):
    """Over an even grid of random numbers each caption has its share, to within a row of it."""
    if given + written == 0:
        return
    ends = (np.arange(60) + 0.5) / 60
    chance = np.stack(np.meshgrid(ends, ends), axis=-1).reshape(-1, 2)
    number = np.full(len(chance), given, np.int16), np.full(len(chance), given + written, np.int16)
    found = np.bincount(caption_of(chance, *number, share), minlength=given + written) / len(chance)
    of_written = share if share is not None and given and written else written / (given + written)
    assert found[:given].tolist() == pytest.approx([(1 - of_written) / max(given, 1)] * given, abs=1 / 60)
    assert found[given:].tolist() == pytest.approx([of_written / max(written, 1)] * written, abs=1 / 60)


def test_captions_differ_between_epochs(rich):
    samples, count = samples_of(rich), rich.samples
    seen = {}
    for start in (0, count):
        batch = samples.batch(start, count)
        seen[start] = {
            int(row): text.tobytes() for row, text in zip(samples.stream.rows(start, count), batch.text.numpy(), strict=True)
        }
    several = [row for row in seen[0] if rich.index.texts[row] == 3]
    assert 0.5 < np.mean([seen[0][row] != seen[count][row] for row in several]) < 0.85  # 2 in 3


def test_short_text_ends_in_zeros_in_memory_that_was_used_before(rich):
    samples = samples_of(rich)
    for turn in range(3 * RING):
        start = 50 * turn
        batch = samples.batch(start, 50)
        for row, latent, text in zip(samples.stream.rows(start, 50), batch.latents.numpy(), batch.text.numpy(), strict=True):
            captions = [sample(rich, row, c)[1] for c in range(rich.index.texts[row])]
            assert np.array_equal(sample(rich, row)[0], latent) and any(np.array_equal(text, c) for c in captions)


@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 5000), parts=st.lists(st.integers(1, 90), min_size=1, max_size=4), mixed=st.booleans())
def test_samples_are_the_same_for_any_grouping_and_way_of_reading(rich, start, parts, mixed):
    weights = {"a": 1.0, "b": 5.0} if mixed else None
    whole = samples_of(rich, "read", weights=weights).batch(start, sum(parts))
    reader = samples_of(rich, "mapped", weights=weights)
    for part in parts:
        batch = reader.batch(start, part)
        for values, expected in zip(batch, whole, strict=True):
            first = start - int(whole.positions[0])
            assert torch.equal(values, expected[first : first + part])
        start += part


def test_a_batch_holds_until_the_second_one_after_it_is_asked_for(plain):
    samples, fresh = samples_of(plain), samples_of(plain)
    before, made_ = None, []

    def make(start):
        made_.append(start)
        return samples.batch(start, 40)

    for batch in read_ahead(make, range(0, 2000, 40)):
        while len(made_) < min(50, int(batch.positions[0]) // 40 + 1 + DEPTH):
            threading.Event().wait(0.001)  # all that may be made by now is made
        for held in filter(None, (before, batch)):
            expected = fresh.batch(int(held.positions[0]), 40)
            assert torch.equal(held.latents, expected.latents) and torch.equal(held.text, expected.text)
        before = batch
    assert len(made_) == 50


def test_memory_is_used_again(plain):
    samples = samples_of(plain)
    places = [samples.batch(40 * n, 40).text.data_ptr() for n in range(3 * RING)]
    assert len(set(places)) == RING and places[:RING] == places[RING : 2 * RING]
    assert len(samples.batch(0, 60).positions) == 60 and len(samples.batch(0, 10).positions) == 10


@pytest.mark.parametrize("reading", ["mapped", "read"])
def test_few_files_are_open_whatever_the_number_of_shards(tmp_path, reading, monkeypatch):
    monkeypatch.setattr(blocks, "OPEN_FILES", 4)
    manifest = made(tmp_path, rows=3000, shards=300, files=2)
    before = len(os.listdir("/proc/self/fd"))
    samples, fresh = samples_of(manifest, reading), samples_of(manifest)
    opened = []
    for start in range(0, 3000, 100):
        batch = samples.batch(start, 100)
        opened.append(len(os.listdir("/proc/self/fd")) - before)
        assert batch.positions[0] == start
    assert max(opened) <= 4 * 2 + 3 * 64 * 2  # those kept open, and the blocks of two windows and a batch between them
    assert torch.equal(batch.text, fresh.batch(2900, 100).text)


def test_blocks_are_loaded_once_a_window_and_let_go(plain, monkeypatch):
    loaded = []
    monkeypatch.setattr(blocks.Blocks, "_load", lambda self, *key: loaded.append(key) or self.shard(*key[:2]).block(key[2]))
    samples = samples_of(plain)
    for start in range(0, 600, 50):
        samples.batch(start, 50)
    samples.batch(600, 50)  # more than half of the epoch: blocks of the next one are the same ones
    assert sorted(loaded) == sorted(
        (kind, shard, block) for kind in ("latents", "text") for shard in (0, 1) for block in range(3)
    )


def test_first_text_is_that_of_the_first_rows(plain):
    samples = samples_of(plain)
    expected = np.stack([plain.text(0).row(row) for row in range(8)])
    assert np.array_equal(samples.first_text(8).numpy(), expected.astype(np.float32))
    assert len(samples.first_text(5000)) == 1200


@pytest.mark.parametrize("reading", ["mapped", "read"])
def test_validation_is_spread_over_what_is_held_out(rich, reading):
    index, samples = rich.validation, samples_of(rich, reading)
    (batch,) = samples.validation(10)
    for place, row in enumerate(range(0, 40, 4)):
        shard = int(index.shard[row])
        assert np.array_equal(batch.latents[place].numpy(), rich.latents(shard).row(int(index.row[row])))
        assert np.array_equal(batch.text[place].numpy(), rich.text(shard).row(int(index.text[row])))
    assert batch.positions.tolist() == list(range(10)) and len(samples.validation(1000)[0].positions) == 40
    samples.batch(0, 50)
    assert torch.equal(samples.validation(10)[0].text, batch.text)


def test_keys_name_the_samples_of_a_batch(rich):
    samples = samples_of(rich, weights={"a": 1.0, "b": 1.0})
    keys, batch = samples.keys(1900, 100), samples.batch(1900, 100)
    assert {key.split("/")[0] for key in keys} == {"a", "b"}
    places = {"a": (0, 1), "b": (2, 3)}
    for key, latent in zip(keys, batch.latents.numpy(), strict=True):
        source, row = key.split("/")
        assert any(np.array_equal(rich.latents(shard).row(int(row)), latent) for shard in places[source])


def test_nothing_held_out_is_no_validation(plain):
    assert samples_of(plain).validation(10) == []


def test_a_shard_that_is_gone_is_named(tmp_path):
    manifest = made(tmp_path, rows=600, shards=2)
    (tmp_path / "text-1.arrow").unlink()
    with pytest.raises(UserError, match=r"text-1\.arrow: not a readable Arrow file"):
        list(read_ahead(lambda start: samples_of(manifest).batch(start, 300), [0]))


def test_microbatches_are_the_batch_in_order(plain):
    batch = samples_of(plain).batch(0, 10)
    parts = list(batch.split(4))
    assert [len(part.positions) for part in parts] == [4, 4, 2]
    for whole, pieces in zip(batch, zip(*parts, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(pieces))


def test_pacing_changes_nothing_on_a_cpu(plain):
    samples = samples_of(plain)
    batches = paced((samples.batch(start, 20) for start in (0, 20, 40)), torch.device("cpu"))
    assert [int(batch.positions[0]) for batch in batches] == [0, 20, 40]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_reading_ahead_keeps_the_order(depth):
    made_ = []
    values = read_ahead(lambda key: made_.append(key) or key * key, range(20), depth)
    assert next(values) == 0
    assert len(made_) <= depth + 1  # no further ahead than that
    assert list(values) == [key * key for key in range(1, 20)]


def test_an_error_comes_where_its_value_would():
    values = read_ahead(lambda key: 1 // (3 - key), range(6))
    assert [next(values) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(values)
