"""Batches of latents and text embeddings, read ahead by one thread."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import ArrowShard, Manifest
from pipeline.engine.batch import Batch
from pipeline.train.order import Order

Key, Value = TypeVar("Key"), TypeVar("Value")


class Samples:
    """The samples of a manifest by position in the shuffled stream."""

    def __init__(self, manifest: Manifest, order: Order, pinned: bool = False) -> None:
        self._index, self._order, self._pinned = manifest.index, order, pinned
        self._shapes = manifest.latent_shape, manifest.text_shape
        self._latents: Callable[[int], ArrowShard] = cache(manifest.latents)
        self._text: Callable[[int], ArrowShard] = cache(manifest.text)

    def batch(self, start: int, count: int) -> Batch:
        """The samples at the positions start … start + count - 1."""
        latents, text = (np.empty((count, *shape), dtype=np.float16) for shape in self._shapes)
        for i, (shard, row) in enumerate(self._index[self._order.rows(start, count)].tolist()):
            latents[i] = self._latents(shard).row(row)
            text[i] = self._text(shard).row(row)
        batch = Batch(torch.arange(start, start + count), torch.from_numpy(latents), torch.from_numpy(text))
        return Batch(*(tensor.pin_memory() for tensor in batch)) if self._pinned else batch

    def first_text(self, count: int) -> Tensor:
        """Text embeddings [count or fewer, L, Dt] float32 of the first rows of the index, in no random order."""
        rows = [self._text(shard).row(row) for shard, row in self._index[:count].tolist()]
        return torch.from_numpy(np.stack(rows).astype(np.float32))


def read_ahead(make: Callable[[Key], Value], keys: Iterable[Key], depth: int = 2) -> Iterator[Value]:
    """`map(make, keys)`, with up to `depth` values made beforehand by one thread. Errors come where their value would."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        pending: deque = deque()
        for key in keys:
            pending.append(thread.submit(make, key))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
