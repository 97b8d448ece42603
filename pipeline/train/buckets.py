"""Batches of one bucket each: latents of several shapes, and all of a batch of the same.

An epoch goes through the blocks in windows, as `Order` does. In each window the samples of a bucket are counted on from
those before it, and every `batch` of them are a batch of the stream, at a random place among those that the window
completes. What does not fill a batch of its bucket at the end of the epoch is left out in that epoch, others in the next.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from pipeline.config.schema import Stage
from pipeline.dataset import Manifest
from pipeline.diffusion import uniforms
from pipeline.errors import UserError
from pipeline.model import MicroDiTConfig, training_flops
from pipeline.train.order import WINDOW_BLOCKS, Order, block_starts

HELD = 3  # windows whose blocks are at hand, and as much of the next as is used up of the last
WINDOW = 2 * WINDOW_BLOCKS // (HELD + 1)  # as many blocks in memory at most as without buckets
CACHED = 32  # windows whose order is kept: a rare bucket's batch spans many


class Plan(NamedTuple):
    """The batches of an epoch, in their order."""

    bucket: np.ndarray  # [batches]
    number: np.ndarray  # [batches] among those of its bucket
    window: np.ndarray  # [batches] in which it is completed
    ends: np.ndarray  # [windows, buckets] samples of each bucket up to and with a window


class BucketOrder(Order):
    """A `Stream` whose positions from any multiple of `batch` to the next hold samples of one bucket. Every epoch visits
    every sample at most once.

    `bucket` [rows] is that of each row of the index, of `buckets` in all.
    """

    def __init__(
        self, starts: np.ndarray, bucket: np.ndarray, buckets: int, batch: int, seed: int, stage: str, window_blocks: int = WINDOW
    ) -> None:
        super().__init__(starts, seed, stage, window_blocks, CACHED)
        self._bucket, self.batch = bucket, batch
        self._counts = np.stack([np.add.reduceat(bucket == n, starts[:-1], dtype=np.int64) for n in range(buckets)], axis=1)
        self.batches = self._counts.sum(axis=0) // batch  # [buckets] of an epoch
        self._plan = lru_cache(2)(self._plan)

    @property
    def images(self) -> int:
        """Of an epoch."""
        return int(self.batches.sum()) * self.batch

    def bucket(self, position: int) -> int:
        """That of the batch at a position."""
        epoch, slot = divmod(position // self.batch, int(self.batches.sum()))
        return int(self._plan(epoch).bucket[slot])

    def seen(self, images: int) -> np.ndarray:
        """Images [buckets] of each bucket before a position, at which a batch begins."""
        epoch, slots = divmod(images // self.batch, int(self.batches.sum()))
        begun = np.bincount(self._plan(epoch).bucket[:slots], minlength=len(self.batches))
        return self.batch * (epoch * self.batches + begun)

    def rows(self, start: int, count: int) -> np.ndarray:
        parts = []
        while count > 0:
            batch, first = divmod(start, self.batch)
            parts.append(self._rows(batch)[first : first + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def ahead(self, start: int, count: int) -> np.ndarray:
        """The blocks of the last HELD windows of these positions' batches in the order of the index, then as large a part
        of the next window's as of the last one's batches have come. Rare buckets also need others, for a few rows each."""
        epoch, slot = divmod((start + max(count, 1) - 1) // self.batch, int(self.batches.sum()))
        windows = self._plan(epoch).window
        last = int(windows[slot])
        blocks = [self._blocks(epoch, window) for window in range(max(0, last - HELD + 1), last + 1)]
        first, end = np.searchsorted(windows, [last, last + 1])
        coming = self._blocks(*self._after(epoch, last))
        share = -(-len(coming) * (slot + 1 - first) // (end - first))
        wanted = np.concatenate([*map(np.sort, blocks), np.sort(coming)[:share]])
        return np.stack([self._starts[wanted], self._starts[wanted + 1]], axis=1)

    def _plan(self, epoch: int) -> Plan:
        blocks = self._epoch(epoch)[0]
        ends = np.add.reduceat(self._counts[blocks], np.arange(0, len(blocks), self._window_blocks), axis=0).cumsum(axis=0)
        bucket = np.repeat(np.arange(len(self.batches)), self.batches)
        number = np.concatenate([np.arange(count) for count in self.batches])
        full = [np.arange(1, count + 1) * self.batch for count in self.batches]
        window = np.concatenate([np.searchsorted(ends[:, n], needed) for n, needed in enumerate(full)])
        places = torch.arange(len(bucket)) + epoch * len(bucket)
        chance = uniforms(self._seed, f"{self._stage}/order/batches", places, 1)[:, 0].numpy()
        order = np.lexsort((chance, window))
        return Plan(bucket[order], number[order], window[order], ends)

    def _rows(self, batch: int) -> np.ndarray:
        """Rows [batch] of the index of a batch of the stream."""
        epoch, slot = divmod(batch, int(self.batches.sum()))
        plan = self._plan(epoch)
        bucket, first = int(plan.bucket[slot]), int(plan.number[slot]) * self.batch
        ends = plan.ends[:, bucket]
        parts = []
        for window in range(int(np.searchsorted(ends, first, side="right")), int(plan.window[slot]) + 1):
            rows = self._window(epoch, window)
            rows = rows[self._bucket[rows] == bucket]
            before = int(ends[window]) - len(rows)
            parts.append(rows[max(first - before, 0) : first + self.batch - before])
        return np.concatenate(parts)


def whole_batches(manifest: Manifest, stage: Stage, name: str) -> list[int]:
    """Of an epoch, for each bucket. Raises: UserError if there is none."""
    batches = [bucket.samples // stage.batch_images for bucket in manifest.buckets]
    if not sum(batches):
        largest = max(bucket.samples for bucket in manifest.buckets)
        raise UserError(
            f"stages.{name}.batch_images: {stage.batch_images} images, but no bucket of {manifest.path} has more than {largest} "
            "samples; lower it, or set models.crop: centre"
        )
    return batches


def bucket_order(manifest: Manifest, stage: Stage, seed: int, name: str) -> BucketOrder:
    """Of all samples of a manifest with buckets. Raises: UserError for weights, or if no bucket fills a batch."""
    if stage.weights is not None:
        raise UserError(
            f"stages.{name}.weights: batches of one bucket have no fixed share of each source; leave weights out, or set "
            "models.crop: centre"
        )
    batches, index = whole_batches(manifest, stage, name), manifest.index
    if index.bucket is None:
        raise UserError(f"{manifest.path}: has buckets, but its index has none; delete both and run again")
    return BucketOrder(block_starts(index), index.bucket, len(batches), stage.batch_images, seed, name)


def account(order: BucketOrder, manifest: Manifest, images: int) -> list[dict[str, int]]:
    """For each bucket its sides in latent pixels, its samples, how many of these an epoch leaves out because they fill no
    batch, and the images that were seen of it after `images`."""
    left_out = [bucket.samples - int(order.batches[n]) * order.batch for n, bucket in enumerate(manifest.buckets)]
    columns = zip(manifest.buckets, left_out, order.seen(images).tolist(), strict=True)
    return [{**bucket._asdict(), "left_out_an_epoch": out, "images_seen": seen} for bucket, out, seen in columns]


def never_trained(order: BucketOrder, manifest: Manifest, name: str) -> str:
    """In words, what is in no epoch because its bucket has less than a batch; empty if there is none such."""
    small = [bucket for n, bucket in enumerate(manifest.buckets) if bucket.samples and not order.batches[n]]
    if not small:
        return ""
    named = ", ".join(f"{bucket.height}x{bucket.width} ({bucket.samples})" for bucket in small)
    count = sum(bucket.samples for bucket in small)
    return f"stages.{name}: {count} samples are never trained on, their buckets do not fill a batch of {order.batch}: {named}"


def flops_an_image(config: MicroDiTConfig, manifest: Manifest, stage: Stage, name: str) -> float:
    """Of training, forward and backward; the mean over an epoch where there are buckets.

    Raises: UserError if no bucket fills a batch.
    """
    if not manifest.buckets:
        return training_flops(config, stage.mask_ratio)
    batches, tokens = whole_batches(manifest, stage, name), bucket_tokens(manifest, config.patch_size)
    each = [training_flops(config, stage.mask_ratio, count) for count in tokens]
    return sum(number * flops for number, flops in zip(batches, each, strict=True)) / sum(batches)


def bucket_tokens(manifest: Manifest, patch_size: int) -> list[int]:
    """Tokens of an image of each bucket."""
    return [bucket.height * bucket.width // patch_size**2 for bucket in manifest.buckets]
