"""The order in which samples are seen: a stateless permutation of (seed, stage, epoch).

The sample at any position of the endless stream is worked out from the position alone, so the state of the data is one
integer, images seen, and the batch at a step is the same for any number of processes. For locality an epoch permutes
blocks of the index (rows that lie side by side on disk) and shuffles inside windows of them, so that only a window's
blocks are touched at a time.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch

from pipeline.artifacts import BLOCK_ROWS
from pipeline.dataset import Index
from pipeline.diffusion import uniforms

WINDOW_BLOCKS = 64
ROWS_AT_ONCE = 1 << 20


def block_starts(index: Index) -> np.ndarray:
    """The rows [blocks + 1] int64 of the index at which a block begins, and its end: a block is what it names of one
    record batch, so that no two blocks read the same bytes of latents."""
    starts = [np.zeros(1, np.int64)]
    for first in range(0, len(index.row), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE + 1)  # one more, to see whether a block ends with the piece
        batch, shard = index.row[rows] // BLOCK_ROWS, index.shard[rows]
        starts.append(np.flatnonzero((np.diff(batch) != 0) | (np.diff(shard) != 0)) + first + 1)
    return np.concatenate([*starts, np.array([len(index.row)])])


class Order:
    """Rows of an index by position in the sample stream; every epoch visits every row once.

    `starts` [blocks + 1] are the rows at which the blocks begin, and the end. The order of `cached` windows is kept.
    """

    def __init__(self, starts: np.ndarray, seed: int, stage: str, window_blocks: int = WINDOW_BLOCKS, cached: int = 2) -> None:
        assert starts[-1] > starts[0] and window_blocks > 0
        self.samples, self._starts, self._window_blocks = int(starts[-1] - starts[0]), starts, window_blocks
        self._seed, self._stage = seed, stage
        self._epoch, self._window = lru_cache(2)(self._epoch), lru_cache(cached)(self._window)  # a batch may span two

    def rows(self, start: int, count: int) -> np.ndarray:
        """Rows [count] int64 at the positions start … start + count - 1; these may cross epochs."""
        parts = [self._window(epoch, window)[first:end] for epoch, window, first, end in self._pieces(start, count)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def ahead(self, start: int, count: int) -> np.ndarray:
        """What to have at hand for these positions: rows [blocks, 2], first and end, of the blocks of their windows in
        the order of the index, then of as large a part of the next window as is used up of the last."""
        *before, (epoch, window, _, end) = self._pieces(start, count)
        blocks = [self._blocks(*piece[:2]) for piece in before] + [self._blocks(epoch, window)]
        coming = self._blocks(*self._after(epoch, window))
        share = -(-len(coming) * end // len(self._window(epoch, window)))
        wanted = np.concatenate([*map(np.sort, blocks), np.sort(coming)[:share]])
        return np.stack([self._starts[wanted], self._starts[wanted + 1]], axis=1)

    def _pieces(self, start: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        """The windows of a run of positions: epoch, window, and the first and the end of its part in the window."""
        while count > 0:
            epoch, inside = divmod(start, self.samples)
            firsts = self._epoch(epoch)[1]
            window = int(np.searchsorted(firsts, inside, side="right")) - 1
            first = inside - int(firsts[window])
            end = min(first + count, len(self._window(epoch, window)))
            yield epoch, window, first, end
            start, count = start + end - first, count - (end - first)

    def _after(self, epoch: int, window: int) -> tuple[int, int]:
        return (epoch, window + 1) if window + 1 < len(self._epoch(epoch)[1]) else (epoch + 1, 0)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks in their order, and at which position of the epoch each window begins."""
        count = len(self._starts) - 1
        blocks = self._shuffled("blocks", np.arange(count), epoch * count)
        window_sizes = np.add.reduceat(np.diff(self._starts)[blocks], np.arange(0, count, self._window_blocks))
        return blocks, np.cumsum(window_sizes) - window_sizes

    def _blocks(self, epoch: int, window: int) -> np.ndarray:
        return self._epoch(epoch)[0][window * self._window_blocks :][: self._window_blocks]

    def _window(self, epoch: int, window: int) -> np.ndarray:
        blocks = self._blocks(epoch, window)
        rows = np.concatenate([np.arange(self._starts[block], self._starts[block + 1]) for block in blocks])
        return self._shuffled("rows", rows, epoch * self.samples - int(self._starts[0]))

    def _shuffled(self, purpose: str, values: np.ndarray, offset: int) -> np.ndarray:
        """`values` sorted by random scores addressed by their own number, hence the same however they are grouped."""
        scores = uniforms(self._seed, f"{self._stage}/order/{purpose}", torch.from_numpy(values + offset), 1)[:, 0]
        return values[np.argsort(scores.numpy(), kind="stable")]
