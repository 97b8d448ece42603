"""Batches of one bucket each: their order, what they hold, and training on them."""

import os
import signal
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifacts import read_json, write_json
from pipeline.bench.synthetic import DataSet
from pipeline.config.schema import Stage
from pipeline.config.steps import Settings
from pipeline.dataset import Manifest
from pipeline.diffusion import EDM
from pipeline.engine.objective import Objective
from pipeline.errors import UserError
from pipeline.model import MicroDiT, training_flops
from pipeline.train import blocks
from pipeline.train.buckets import CACHED, HELD, BucketOrder, account, bucket_order, flops_an_image, never_trained
from pipeline.train.budget import within_budget
from pipeline.train.data import RING, Samples
from pipeline.train.learner import recipe_of
from pipeline.train.network import architecture
from pipeline.train.order import block_starts
from pipeline.train.validation import Validation
from tests.training import ends, metrics, same, wait_until, weights

SHAPES = ((4, 4), (3, 5), (5, 3), (2, 8))
DATA = dict(latent=(4, 4, 4), text=(3, 8), buckets=SHAPES, captions=2, padding="drop")


@st.composite
def orders(draw):
    """Blocks of an index, the bucket of every row, and the size of a batch, of which at least one is full."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=25))
    count = draw(st.integers(1, 4))
    shares = np.array(draw(st.lists(st.integers(1, 50), min_size=count, max_size=count)), float)
    bucket = np.random.default_rng(draw(st.integers(0, 99))).choice(count, sum(sizes), p=shares / shares.sum())
    batch = draw(st.integers(1, max(1, int(np.bincount(bucket).max()))))
    window = draw(st.integers(1, 6))
    return lambda seed=1, stage="toy": BucketOrder(
        np.cumsum([0, *sizes]), bucket.astype(np.int16), count, batch, seed, stage, window
    )


def batches_of(order, first, count):
    return [order.rows(start, order.batch) for start in range(first, first + count * order.batch, order.batch)]


@settings(max_examples=80, deadline=None)
@given(orders(), st.integers(0, 4))
def test_a_batch_is_of_one_bucket_and_no_sample_comes_twice_in_an_epoch(make, epoch):
    order = make()
    whole = np.bincount(order._bucket, minlength=len(order.batches)) // order.batch
    assert order.batches.tolist() == whole.tolist() and order.images == order.batch * whole.sum()
    seen = batches_of(order, epoch * order.images, int(whole.sum()))
    named = [order.bucket(epoch * order.images + n * order.batch) for n in range(len(seen))]
    assert [set(order._bucket[rows].tolist()) for rows in seen] == [{bucket} for bucket in named]
    assert np.bincount(named, minlength=len(whole)).tolist() == whole.tolist()  # all that is full is there
    rows = np.concatenate(seen)
    assert len(set(rows.tolist())) == len(rows) == order.images


@settings(max_examples=60, deadline=None)
@given(orders(), st.integers(0, 60), st.integers(1, 5), st.data())
def test_processes_share_the_same_batches(make, first, processes, data):
    """Contiguous shares of a batch, asked for in any order, by those that have seen nothing else."""
    order = make()
    start = first * order.batch
    whole = order.rows(start, order.batch)
    cuts = [order.batch * rank // processes for rank in range(processes + 1)]
    for first, end in data.draw(st.permutations(list(pairwise(cuts)))):
        assert np.array_equal(make().rows(start + first, end - first), whole[first:end])
    assert np.array_equal(order.rows(start, 3 * order.batch)[: order.batch], whole)


@settings(max_examples=60, deadline=None)
@given(orders(), st.integers(0, 200))
def test_what_was_seen_is_counted_by_bucket(make, count):
    order = make()
    named = [order.bucket(n * order.batch) for n in range(count)]
    expected = order.batch * np.bincount(np.array(named, int), minlength=len(order.batches))
    assert make().seen(count * order.batch).tolist() == expected.tolist()


def even(batch=16, buckets=3, blocks_=40, rows=32, seed=1, stage="toy", window=4):
    bucket = np.random.default_rng(0).choice(buckets, blocks_ * rows).astype(np.int16)
    return BucketOrder(np.arange(blocks_ + 1) * rows, bucket, buckets, batch, seed, stage, window)


def test_order_depends_on_seed_stage_and_epoch_alone():
    order = even()
    first = order.rows(0, order.images)
    assert np.array_equal(first, even().rows(0, order.images))
    for other in (even(seed=2), even(stage="b")):
        assert (first == other.rows(0, order.images)).mean() < 0.02
    assert (first == order.rows(order.images, order.images)).mean() < 0.02


def test_what_is_left_out_is_other_samples_every_time():
    order = even(batch=50)
    total = 40 * 32
    assert 0 < total - order.images < 150
    left = [set(range(total)) - set(order.rows(epoch * order.images, order.images).tolist()) for epoch in range(40)]
    assert len(set().union(*left)) > 0.7 * total
    counts = np.bincount(np.concatenate([list(part) for part in left]), minlength=total)
    assert counts.max() <= 12  # of 40; one always left out would be a sample lost


def test_buckets_come_mixed():
    """No long runs of one bucket: neighbours agree as often as in a random order."""
    order = even(batch=4, blocks_=100)
    named = np.array([order.bucket(n * 4) for n in range(order.images // 4)])
    assert (named[1:] == named[:-1]).mean() == pytest.approx(1 / 3, abs=0.08)
    thirds = [np.bincount(part, minlength=3) / len(part) for part in np.array_split(named, 3)]
    assert np.abs(np.array(thirds) - 1 / 3).max() < 0.08


@settings(max_examples=60, deadline=None)
@given(orders(), st.integers(0, 80))
def test_what_is_ahead_is_whole_blocks_few_of_them_and_those_of_frequent_buckets(make, first):
    order = make()
    start = first * order.batch
    ranges = order.ahead(start, order.batch)
    assert {int(row) for row in ranges.ravel()} <= set(order._starts.tolist())
    assert 0 < len(ranges) <= (HELD + 1) * order._window_blocks
    epoch, slot = divmod(first, int(order.batches.sum()))
    plan = order._plan(epoch)
    rows = order.rows(start, order.batch)
    recent = np.concatenate([order._window(epoch, n) for n in range(max(0, plan.window[slot] - HELD + 1), plan.window[slot] + 1)])
    ahead = {row for low, high in ranges for row in range(low, high)}
    assert set(rows) & set(recent.tolist()) <= ahead and set(recent.tolist()) <= ahead


def test_batches_of_a_frequent_bucket_lie_in_what_is_ahead_and_the_next_window_comes_bit_by_bit():
    order = even(batch=16, buckets=2)
    sizes = []
    for start in range(0, order.images, 16):
        ranges = order.ahead(start, 16)
        assert set(order.rows(start, 16).tolist()) <= {row for low, high in ranges for row in range(low, high)}
        sizes.append(len(ranges))
    assert min(sizes) < max(sizes) <= 4 * (HELD + 1) and len(set(sizes)) > 4


# Samples


@pytest.fixture(scope="module")
def shaped(tmp_path_factory):
    """Latents of four shapes, one to two captions of any length, samples left out and held out."""
    return Manifest.read(DataSet(rows=2400, shards=4, kept=0.9, held_out=60, **DATA).write(tmp_path_factory.mktemp("shaped")))


def samples_of(manifest, reading="mapped", batch=64, **stage):
    return Samples(manifest, Stage(px=32, mask_ratio=0, images=batch, batch_images=batch, **stage), 3, "toy", reading)


@pytest.mark.parametrize("reading", ["mapped", "read"])
def test_batches_hold_the_rows_of_the_order_in_their_shape(shaped, reading):
    samples, index, found = samples_of(shaped, reading), shaped.index, set()
    for start in range(0, 64 * 2 * RING, 64):
        batch, rows = samples.batch(start, 64), samples.stream.rows(start, 64)
        bucket = SHAPES[samples.buckets.bucket(start)]
        assert batch.latents.shape == (64, 4, *bucket) and batch.latents.is_contiguous()
        found.add(bucket)
        for place, row in enumerate(rows[:16]):
            shard = int(index.shard[row])
            assert np.array_equal(batch.latents[place].numpy(), shaped.latents(shard).row(int(index.row[row])))
            texts = [shaped.text(shard).row(int(index.text[row]) + n) for n in range(index.texts[row])]
            assert any(np.array_equal(batch.text[place].numpy(), text) for text in texts)
    assert len(found) >= 3


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 60), st.lists(st.integers(1, 63), unique=True, max_size=4).map(sorted))
def test_samples_are_the_same_for_any_grouping_and_way_of_reading(shaped, number, cuts):
    start, edges = 64 * number, [0, *cuts, 64]
    whole, reader = samples_of(shaped, "read").batch(start, 64), samples_of(shaped)
    for first, end in pairwise(edges):
        part = reader.batch(start + first, end - first)
        for values, expected in zip(part, whole, strict=True):
            assert torch.equal(values, expected[first:end])


def test_rare_buckets_are_read_from_wherever_they_lie(tmp_path, monkeypatch):
    """A batch that spans more windows than are at hand: its other rows come from blocks that are not kept."""
    monkeypatch.setattr("pipeline.train.buckets.WINDOW", 1)
    manifest = Manifest.read(DataSet(rows=5120, shards=2, **DATA | {"buckets": SHAPES[:2]}).write(tmp_path))
    value = read_json(manifest.path)
    stage = Stage(px=32, mask_ratio=0, images=1200, batch_images=1200)
    samples = Samples(manifest, stage, 3, "toy")
    monkeypatch.setattr(samples, "buckets", order := BucketOrder(*_of(manifest), 1200, 3, "toy", 1))
    monkeypatch.setattr(samples, "stream", order)
    slots = [n for n in range(int(order.batches.sum())) if order.bucket(1200 * n) == 1]
    held = len(order.ahead(1200 * slots[0], 1200))
    rows = order.rows(1200 * slots[0], 1200)
    batch = samples.batch(1200 * slots[0], 1200)
    assert len(np.unique(manifest.index.row[rows] // 256 + 100 * manifest.index.shard[rows])) > held
    assert len(samples._blocks._loading) <= 3 * held
    for place in range(0, 1200, 97):
        shard, row = int(manifest.index.shard[rows[place]]), int(manifest.index.row[rows[place]])
        assert np.array_equal(batch.latents[place].numpy(), manifest.latents(shard).row(row))
    assert value["buckets"][1]["samples"] >= 1200


def _of(manifest):
    return block_starts(manifest.index), manifest.index.bucket, len(manifest.buckets)


def test_blocks_are_loaded_once_a_window_and_let_go(shaped, monkeypatch):
    loaded = []
    monkeypatch.setattr(blocks.Blocks, "_load", lambda self, *key: loaded.append(key) or self.shard(*key[:2]).block(key[2]))
    samples = samples_of(shaped, batch=16)
    for start in range(0, samples.epoch_images, 16):
        samples.batch(start, 16)
    assert len(loaded) == len(set(loaded)) and {kind for kind, _, _ in loaded} == {"latents", "text"}


def test_names_of_the_samples_of_a_batch(shaped):
    samples = samples_of(shaped)
    keys, batch = samples.keys(128, 64), samples.batch(128, 64)
    for key, latent in zip(keys, batch.latents.numpy(), strict=True):
        row = int(key.split("/")[1])
        same_shape = [shaped.latents(n).row(row) for n in range(4) if shaped.latents(n).row(row).shape == latent.shape]
        assert any(np.array_equal(latent, other) for other in same_shape)


def test_held_out_samples_come_in_a_batch_for_each_shape(shaped):
    found = samples_of(shaped).validation(40)
    assert sorted(torch.cat([batch.positions for batch in found]).tolist()) == list(range(40))
    assert len({batch.latents.shape[2:] for batch in found}) == len(found) > 2
    index = shaped.validation
    for batch in found:
        for position, latent in zip(batch.positions.tolist(), batch.latents, strict=True):
            row = position * 60 // 40
            shard = shaped.latents(int(index.shard[row]))
            assert np.array_equal(latent.numpy(), shard.row(int(index.row[row])))


@torch.no_grad()
def test_every_held_out_sample_weighs_the_same_in_the_validation_loss(shaped, slice_of):
    slice_ = slice_of(px=32, mask_ratio=0.5)
    objective = Objective(EDM(sigma_data=0.7), architecture(slice_.model_copy(update={"base_px": 32}), shaped), recipe_of(slice_))
    model = MicroDiT(objective.config, seed=1)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))

    def measured(batch):
        sections = {"validation": {"images": 40, "sigmas": [0.5]}, "runtime": {"sample_batch": batch}}
        return Validation(slice_, Settings(**sections), samples_of(shaped), objective, torch.device("cpu")).measure(model.eval())

    assert measured(64)["validation_loss"] == pytest.approx(measured(1)["validation_loss"], rel=1e-5)


def test_a_manifest_with_weights_or_batches_that_no_bucket_fills_is_refused(shaped):
    with pytest.raises(UserError, match=r"stages\.toy\.weights: batches of one bucket have no fixed share"):
        samples_of(shaped, weights={"synthetic": 1.0})
    most = max(bucket.samples for bucket in shaped.buckets)
    assert samples_of(shaped, batch=most).epoch_images == most
    with pytest.raises(UserError, match=rf"stages\.toy\.batch_images: {most + 1} images, but no bucket .* more than {most} "):
        samples_of(shaped, batch=most + 1)


def test_the_account_adds_up(shaped):
    stage = Stage(px=32, mask_ratio=0, images=64, batch_images=64)
    order = bucket_order(shaped, stage, 3, "toy")
    found = account(order, shaped, 64 * 50)
    assert sum(line["samples"] for line in found) == shaped.samples and sum(line["images_seen"] for line in found) == 64 * 50
    for line, batches in zip(found, order.batches, strict=True):
        assert line["samples"] == 64 * batches + line["left_out_an_epoch"]
    assert never_trained(order, shaped, "toy") == ""
    small = min(shaped.buckets, key=lambda bucket: bucket.samples)
    order = bucket_order(shaped, stage.model_copy(update={"batch_images": small.samples + 1}), 3, "toy")
    told = never_trained(order, shaped, "toy")
    assert told.startswith(f"stages.toy: {small.samples} samples are never trained on")
    assert told.endswith(f"{small.height}x{small.width} ({small.samples})")


def test_flops_are_the_mean_over_an_epoch(shaped, slice_of):
    slice_ = slice_of(px=32, mask_ratio=0.5, batch_images=64, images=640).model_copy(update={"base_px": 32})
    config = architecture(slice_, shaped)
    order, tokens = bucket_order(shaped, slice_.stage, 3, "toy"), [16, 15, 15, 16]
    each = [training_flops(config, 0.5, count) for count in tokens]
    expected = sum(seen * flops for seen, flops in zip(order.seen(order.images), each, strict=True)) / order.images
    found = flops_an_image(config, shaped, slice_.stage, "toy")
    assert found == pytest.approx(expected) and each[1] < found < each[0]
    assert flops_an_image(config, SimpleNamespace(buckets=[]), slice_.stage, "toy") == training_flops(config, 0.5) == each[0]
    paid = within_budget(slice_.model_copy(update={"training_flops": 640.5 * found}), shaped)
    assert paid.stage.images == 640


def test_buckets_of_no_whole_patches_are_refused(shaped, slice_of):
    slice_ = slice_of(px=32, model={"patch_size": 2}).model_copy(update={"base_px": 32})
    with pytest.raises(UserError, match=r"toy: latents of a bucket are 3x5, no whole patches of 2; set models\.bucket_step"):
        architecture(slice_, shaped)


def test_the_order_of_many_windows_is_kept():
    order = even(batch=300, buckets=2, blocks_=64, window=1)
    order.rows(0, 300)
    assert order._window.cache_info().maxsize == CACHED


# The training step


def test_draws_and_losses_of_a_sample_do_not_depend_on_its_batch(shaped, slice_of):
    slice_ = slice_of(px=32, mask_ratio=0.5).model_copy(update={"base_px": 32})
    objective = Objective(EDM(sigma_data=0.7), architecture(slice_, shaped), recipe_of(slice_))
    positions = torch.arange(7, 20)
    square, wide = objective.draw(positions, 4, 4), objective.draw(positions, 3, 5)
    assert torch.equal(square.noise.flatten(1)[:, :60], wide.noise.flatten(1)) and torch.equal(square.normal, wide.normal)
    assert wide.noise.shape == (13, 4, 3, 5) and wide.ids_keep.shape == (13, 7) and wide.ids_keep.max() == 14
    model, samples = MicroDiT(objective.config, seed=1), samples_of(shaped)
    starts = {samples.buckets.bucket(start): start for start in range(0, 64 * 12, 64)}
    for start in starts.values():
        batch = samples.batch(start, 8).to(torch.device("cpu"))
        whole = objective(model, batch)
        alone = torch.cat([objective(model, part).per_image for part in batch.split(1)])
        torch.testing.assert_close(alone, whole.per_image, rtol=1e-5, atol=0)


# Whole runs


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """80 samples in four buckets, the last of which fills no batch of 12; 10 are held out."""
    path = DataSet(rows=90, shards=1, held_out=10, **DATA).write(tmp_path_factory.mktemp("toys"))
    assert [bucket.samples // 12 > 0 for bucket in Manifest.read(path).buckets] == [True, True, True, False]
    return path


@pytest.fixture(scope="module")
def shaped_slice(slice_of):
    return slice_of({"base_px": 32}, px=32, images=360, batch_images=12, mask_ratio=0.5, posthoc_ema=[0.05, 0.1])


def test_a_run_that_was_killed_ends_with_the_same_weights(trainer, shaped_slice, toys):
    """Killed where it stands, then stopped by a signal, then trained to the end by two processes."""
    whole = trainer.run(shaped_slice, toys, name="whole")
    process = trainer.start(shaped_slice, toys, samples_every_images=12)
    wait_until(process, lambda: trainer.newest() > 0)
    process.kill()
    process.join(60)
    process = trainer.start(shaped_slice, toys, samples_every_images=12)
    before = trainer.newest()
    wait_until(process, lambda: trainer.newest() > before)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert 0 < trainer.newest() < 360
    out = trainer.run(shaped_slice, toys)
    assert same(weights(out), weights(whole)) and metrics(out)[-1]["images"] == 360

    summary, lines = read_json(whole / "summary.json"), metrics(whole)
    manifest = Manifest.read(toys)
    order = bucket_order(manifest, shaped_slice.stage, shaped_slice.seed, "toy")
    assert summary["buckets"] == account(order, manifest, 360) and summary["buckets"][3]["images_seen"] == 0
    each = [training_flops(architecture(shaped_slice, manifest), 0.5, count) for count in (16, 15, 15, 16)]
    expected = sum(line["images_seen"] * flops for line, flops in zip(summary["buckets"], each, strict=True))
    assert summary["training_flops"] == pytest.approx(expected)
    assert [line["epoch"] for line in lines if "epoch" in line][-1] == 360 / order.images
    assert any("validation_loss" in line for line in lines)
    assert "samples are never trained on, their buckets do not fill a batch of 12: 2x8" in trainer.log("whole").read_text()

    assert ends(trainer.start_two(shaped_slice, toys, name="two", microbatch=4)) == [0, 0], trainer.log("two").read_text()
    folders = whole, trainer.folder / "two/out"
    one, two = (torch.cat([value.flatten() for _, value in sorted(weights(folder).items())]) for folder in folders)
    assert (one - two).norm() / one.norm() < 1e-3


def test_an_index_without_the_buckets_of_its_manifest_is_refused(tmp_path):
    path = DataSet(rows=96, shards=1, **DATA).write(tmp_path / "with")
    plain = DataSet(rows=96, shards=1, **DATA | {"buckets": ()}).write(tmp_path / "without")
    for name in ("index", "validation"):
        (path.parent / f"{name}.arrow").write_bytes((plain.parent / f"{name}.arrow").read_bytes())
    write_json(path, read_json(path) | {"files": read_json(plain)["files"]})
    with pytest.raises(UserError, match="has buckets, but its index has none"):
        samples_of(Manifest.read(path), batch=12)
