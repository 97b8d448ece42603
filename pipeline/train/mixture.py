"""Sources mixed by weight: which source each position of the sample stream takes, and which sample of it.

The sources share out the interval [0, 1) by their weights. Position p takes the source in whose part the p-th point of
the van der Corput sequence falls (the bits of p in reverse order, behind the point; van der Corput 1935), shifted by
random bits of (seed, stage). The 2^k positions from any multiple of 2^k on hold one point in each 2^-k of the interval,
so every such run, hence every batch and every process's part of it, has each source's share to within one sample,
however small the weight.
"""

import math
from typing import Protocol

import numpy as np
import torch

from pipeline.dataset import Manifest
from pipeline.diffusion import uniforms
from pipeline.errors import UserError
from pipeline.train.order import WINDOW_BLOCKS, Order, block_starts

BITS = 48  # of positions and of weights


class Stream(Protocol):
    """An endless stream of samples by position."""

    def rows(self, start: int, count: int) -> np.ndarray:
        """Rows [count] int64 of the index at the positions start … start + count - 1."""

    def ahead(self, start: int, count: int) -> np.ndarray:
        """Rows [blocks, 2], first and end, of the blocks to have at hand for these positions and those after them."""


def stream_of(manifest: Manifest, weights: dict[str, float] | None, seed: int, stage: str) -> Stream:
    """All samples in one order, or each source in its own, mixed by `weights` in any unit.

    Raises: UserError if the weights do not fit the sources of the manifest.
    """
    starts = block_starts(manifest.index)
    if weights is None:
        return Order(starts, seed, stage)
    _check(weights, manifest.sources, f"stages.{stage}.weights")
    window = max(1, WINDOW_BLOCKS // len(weights))  # what is held in memory is the same for any number of sources
    orders = []
    for name in weights:
        first, end = np.searchsorted(starts, manifest.sources[name])
        orders.append(Order(starts[first : end + 1], seed, f"{stage}/{name}", window))
    return Mixture(orders, list(weights.values()), seed, stage)


def _check(weights: dict[str, float], sources: dict[str, tuple[int, int]], where: str) -> None:
    if missing := set(sources) - set(weights):
        raise UserError(f"{where}: no weight for {', '.join(sorted(missing))}; name every source of the stage")
    for name, weight in weights.items():
        first, end = sources.get(name, (0, 0))
        if first == end:
            raise UserError(f"{where}.{name}: no sample of this source is left to train on; take it out of the stage's sources")
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"{where}.{name}: {weight} is no share; give a number above 0, or take the source out of the stage")
    least = min(weights, key=weights.__getitem__)
    if weights[least] / math.fsum(weights.values()) < 2.0 ** (2 - BITS):
        raise UserError(f"{where}.{least}: {weights[least]} is too small beside the others; take the source out of the stage")


class Mixture:
    """A `Stream` of several orders by their `shares`, in any unit; each has epochs of its own."""

    def __init__(self, orders: list[Order], shares: list[float], seed: int, stage: str) -> None:
        self._orders = orders
        ends = np.cumsum(np.array(shares) / math.fsum(shares))[:-1]
        self._edges = np.array([0, *np.rint(ends * 2**BITS), 2**BITS], dtype=np.int64)  # of the parts, times 2^BITS
        high, low = uniforms(seed, f"{stage}/mixture", torch.zeros(1, dtype=torch.int64), 2)[0].tolist()
        self._shift = int(high * 2**24) << 24 | int(low * 2**24)

    def rows(self, start: int, count: int) -> np.ndarray:
        sources, rows = self.sources(start, count), np.empty(count, dtype=np.int64)
        for source, (order, first) in enumerate(zip(self._orders, self.before(start), strict=True)):
            mine = np.flatnonzero(sources == source)
            rows[mine] = order.rows(int(first), len(mine))
        return rows

    def ahead(self, start: int, count: int) -> np.ndarray:
        first = self.before(start)
        taken = np.maximum(self.before(start + count) - first, 1)
        return np.concatenate([o.ahead(int(f), int(n)) for o, f, n in zip(self._orders, first, taken, strict=True)])

    def sources(self, start: int, count: int) -> np.ndarray:
        """Numbers [count] of the sources at the positions start … start + count - 1."""
        points = _reversed(np.arange(start, start + count)) ^ self._shift
        return np.searchsorted(self._edges, points, side="right") - 1

    def before(self, position: int) -> np.ndarray:
        """How many samples of each source come before a position.

        The positions before it fall into a run of 2^k for each bit k that it has; the points of a run are `base` and
        those at multiples of `step` from there, which can be counted below each edge.
        """
        below = np.zeros(len(self._edges), dtype=np.int64)
        for k in range(position.bit_length()):
            if position >> k & 1:
                run, step = position >> (k + 1) << (k + 1), 1 << (BITS - k)
                base = int(_reversed(np.array([run]))[0] ^ self._shift) % step
                below += -((base - self._edges) // step)
        return np.diff(below)


def _reversed(positions: np.ndarray) -> np.ndarray:
    """The BITS bits of each number [N] int64 in reverse order."""
    bits = np.unpackbits(positions.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)
    return (np.packbits(bits[:, ::-1], axis=1).view(">u8")[:, 0] >> (64 - BITS)).astype(np.int64)
