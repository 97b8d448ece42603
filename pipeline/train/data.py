"""Batches of latents and text embeddings, read ahead by one thread."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.config.schema import Stage
from pipeline.dataset import Index, Manifest, Reading
from pipeline.diffusion import uniforms
from pipeline.engine.batch import Batch
from pipeline.train.blocks import Blocks, blocks_of
from pipeline.train.buckets import bucket_order
from pipeline.train.mixture import stream_of

DEPTH = 2  # batches made beforehand
RING = DEPTH + 2  # buffers: those, the one that is asked for, and the one handed out before it

Key, Value = TypeVar("Key"), TypeVar("Value")


class Samples:
    """The samples of a manifest by position in the shuffled stream of a stage.

    `reading`: "mapped" for local disks, "read" for network file systems; the samples are the same. `pinned`: batches in
    page-locked memory, from which CUDA copies while it computes.
    """

    def __init__(
        self, manifest: Manifest, stage: Stage, seed: int, name: str, reading: Reading = "mapped", pinned: bool = False
    ) -> None:
        self._manifest, self._index = manifest, manifest.index
        self.buckets = bucket_order(manifest, stage, seed, name) if manifest.buckets else None
        self.stream = self.buckets or stream_of(manifest, stage.weights, seed, name)
        self._blocks = Blocks(manifest, reading)
        self._captions = seed, f"{name}/caption", stage.written_share
        self._pinned = pinned
        self._ring = cycle([_Buffer(manifest, pinned) for _ in range(RING)])

    def batch(self, start: int, count: int) -> Batch:
        """The samples at the positions start … start + count - 1, each with one of its captions at random. Where there are
        buckets, these are positions of one batch of the stage.

        Memory is reused: latents and text hold until the RING-th batch after this one is made. Behind `read_ahead` of
        DEPTH that is when the consumer asks for the second batch after this one; where copies to a GPU may still be
        under way by then, put `paced` between. Call from one thread.
        """
        self._blocks.expect(blocks_of(self._index, self.stream.ahead(start, count)))
        rows, positions = self.stream.rows(start, count), torch.arange(start, start + count)
        shards, (latents, text) = self._index.shard[rows], next(self._ring).take(count, self._shape(start, count))
        self._blocks.gather("latents", shards, self._index.row[rows], _flat(latents))
        self._blocks.gather("text", shards, self._text_rows(rows, positions), _flat(text))
        return Batch(positions.pin_memory() if self._pinned else positions, latents, text)

    @property
    def epoch_images(self) -> int:
        """Of an epoch over all samples, or over the whole batches of the buckets."""
        return self.buckets.images if self.buckets else self._manifest.samples

    def _shape(self, start: int, count: int) -> tuple[int, int, int]:
        """[C, H, W] of the latents at these positions."""
        if self.buckets is None:
            return self._manifest.latent_shape
        size = self.buckets.batch
        assert start // size == (start + count - 1) // size, "positions of two batches may be of two buckets"
        return self._bucket_shape(self.buckets.bucket(start))

    def _bucket_shape(self, number: int) -> tuple[int, int, int]:
        bucket = self._manifest.buckets[number]
        return self._manifest.latent_shape[0], bucket.height, bucket.width

    def validation(self, count: int) -> list[Batch]:
        """Held-out samples, spread evenly over all there are, `count` at most, the same at every call, each with its
        first caption; a batch for each shape of latents. None of it if nothing is held out."""
        index, total = self._manifest.validation, len(self._manifest.validation.row)
        rows = np.arange(min(count, total)) * total // max(min(count, total), 1)
        shapes = np.zeros_like(rows) if index.bucket is None else index.bucket[rows]
        return [self._held_out(index, rows, np.flatnonzero(shapes == shape)) for shape in np.unique(shapes)]

    def _held_out(self, index: Index, rows: np.ndarray, places: np.ndarray) -> Batch:
        """Those at `places` of the rows that were chosen; their positions are these places."""
        rows = rows[places]
        latents = self._rows("latents", index.shard[rows], index.row[rows])
        return Batch(torch.from_numpy(places), latents, self._rows("text", index.shard[rows], index.text[rows]))

    def first_text(self, count: int) -> Tensor:
        """Text embeddings [count or fewer, L, Dt] float32 of the first rows of the index, in no random order."""
        return self._rows("text", self._index.shard[:count], self._index.text[:count]).float()

    def keys(self, start: int, count: int) -> list[str]:
        """source/key of the samples at the positions start … start + count - 1."""
        rows = self.stream.rows(start, count)
        shards = self._index.shard[rows].tolist()
        names = {shard: self._manifest.latents(shard).keys for shard in set(shards)}
        places = zip(shards, self._index.row[rows].tolist(), strict=True)
        return [f"{self._manifest.shards[shard]['source']}/{names[shard][row]}" for shard, row in places]

    def _text_rows(self, rows: np.ndarray, positions: Tensor) -> np.ndarray:
        texts = self._index.texts[rows]
        if texts.max() == 1:
            return self._index.text[rows]
        seed, purpose, written_share = self._captions
        chance = uniforms(seed, purpose, positions, 2).numpy()
        return self._index.text[rows] + caption_of(chance, self._index.given[rows], texts, written_share)

    def _rows(self, kind: str, shards: np.ndarray, rows: np.ndarray) -> Tensor:
        values = [self._blocks.shard(kind, shard).row(row) for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)]
        return torch.from_numpy(np.stack(values))


def caption_of(chance: np.ndarray, given: np.ndarray, texts: np.ndarray, written_share: float | None) -> np.ndarray:
    """Which of its captions [B] int32 each sample takes, by uniform random numbers `chance` [B, 2] in (0, 1).

    The first `given` [B] of its `texts` [B] came with the image, the others a model wrote. Each is as likely as any other,
    or with `written_share` one of the written ones is taken that often, where a sample has both.
    """
    if written_share is None:
        return (chance[:, 0] * texts).astype(np.int32)
    takes_written = np.where((given > 0) & (given < texts), chance[:, 1] < written_share, given == 0)
    first, count = np.where(takes_written, given, 0), np.where(takes_written, texts - given, given)
    return (first + chance[:, 0] * count).astype(np.int32)


class _Buffer:
    """Memory of one batch's latents and text: touching fresh pages costs as much as filling them."""

    def __init__(self, manifest: Manifest, pinned: bool) -> None:
        self._shapes, self._pinned = (manifest.latent_shape, manifest.text_shape), pinned
        self._values: list[Tensor] = []

    def take(self, count: int, latent_shape: tuple[int, int, int]) -> list[Tensor]:
        """Of `count` samples; their latents have no more values than those of the manifest's shape."""
        if not self._values or len(self._values[0]) < count:
            self._values = [torch.empty(count, *shape, dtype=torch.float16, pin_memory=self._pinned) for shape in self._shapes]
        latents, text = self._values
        flat = latents.view(-1)[: count * math.prod(latent_shape)]  # without gaps, as copies to a GPU want it
        return [flat.view(count, *latent_shape), text[:count]]


def _flat(values: Tensor) -> np.ndarray:
    return values.numpy().reshape(len(values), -1)


def read_ahead(make: Callable[[Key], Value], keys: Iterable[Key], depth: int = DEPTH) -> Iterator[Value]:
    """`map(make, keys)`, with up to `depth` values made beforehand by one thread. Errors come where their value would."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches", initializer=_compute_alone) as thread:
        pending: deque = deque()
        for key in keys:
            pending.append(thread.submit(make, key))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _compute_alone() -> None:
    """In this thread torch uses no helpers. With helpers of its own there would be more OpenMP threads than cores, and
    OpenMP then puts all of them to sleep between any two operations: training was 1.8 times slower."""
    torch.set_num_threads(1)


def paced(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches; on CUDA the next one comes when the GPU is done with the one before the last.

    Without that a host that never waits for its GPU would have the memory of a batch filled anew while its copy to the
    GPU is still to come. One step lies ready for the GPU all the time.
    """
    before = None
    for batch in batches:
        yield batch
        if device.type == "cuda":
            here = torch.cuda.Event()
            here.record(torch.cuda.current_stream(device))
            if before is not None:
                before.synchronize()
            before = here
