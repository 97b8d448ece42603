"""The order in which samples are seen: a stateless permutation of (seed, stage, epoch).

The sample at any position of the endless stream is worked out from the position alone, so the state of the data is one
integer, images seen, and the batch at a step is the same for any number of processes. For locality the index is cut
into blocks (consecutive rows lie side by side on disk); an epoch permutes the blocks and shuffles inside windows of
them, so that only a window's blocks are touched at a time.
"""

from functools import lru_cache

import numpy as np
import torch

from pipeline.artifacts import BLOCK_ROWS
from pipeline.diffusion import uniforms

WINDOW_BLOCKS = 64


class Order:
    """Rows of an index of `samples` rows, by position in the sample stream; every epoch visits every row once."""

    def __init__(self, samples: int, seed: int, stage: str, block: int = BLOCK_ROWS, window_blocks: int = WINDOW_BLOCKS):
        assert samples > 0
        self.samples, self.block, self.window_blocks = samples, block, window_blocks
        self._seed, self._stage = seed, stage
        self._epoch, self._window = lru_cache(2)(self._epoch), lru_cache(2)(self._window)  # a batch may span two

    def rows(self, start: int, count: int) -> np.ndarray:
        """Rows [count] int64 at the positions start … start + count - 1; these may cross epochs."""
        parts = []
        while count > 0:
            epoch, inside = divmod(start, self.samples)
            firsts = self._epoch(epoch)[1]
            window = int(np.searchsorted(firsts, inside, side="right")) - 1
            part = self._window(epoch, window)[inside - firsts[window] :][:count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks in their order, and at which position of the epoch each window begins."""
        count = -(-self.samples // self.block)
        blocks = self._shuffled("blocks", np.arange(count), epoch * count)
        sizes = np.minimum(self.block, self.samples - blocks * self.block)  # the last block may be short
        window_sizes = np.add.reduceat(sizes, np.arange(0, count, self.window_blocks))
        return blocks, np.cumsum(window_sizes) - window_sizes

    def _window(self, epoch: int, window: int) -> np.ndarray:
        blocks = self._epoch(epoch)[0][window * self.window_blocks :][: self.window_blocks]
        rows = (blocks[:, None] * self.block + np.arange(self.block)).ravel()
        return self._shuffled("rows", rows[rows < self.samples], epoch * self.samples)

    def _shuffled(self, purpose: str, values: np.ndarray, offset: int) -> np.ndarray:
        """`values` sorted by random scores addressed by their own number, hence the same however they are grouped."""
        scores = uniforms(self._seed, f"{self._stage}/order/{purpose}", torch.from_numpy(values + offset), 1)[:, 0]
        return values[np.argsort(scores.numpy(), kind="stable")]
