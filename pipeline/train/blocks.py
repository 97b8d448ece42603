"""The blocks of shards that the next samples lie in, loaded beforehand by a few threads."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch

from pipeline.artifacts import BLOCK_ROWS
from pipeline.dataset import ArrowShard, Block, Index, Manifest, Reading

LOADERS = 4  # threads, so that a network file system has several requests at hand
OPEN_FILES = 128  # a mapped file takes two descriptors, and blocks in use keep theirs: far below the usual limit of 1,024

Key = tuple[str, int, int]  # latents or text, shard, number of the block


class Blocks:
    """Blocks by key. Those that are expected are loaded beforehand and kept until they are expected no more."""

    def __init__(self, manifest: Manifest, reading: Reading) -> None:
        self._open = {"latents": manifest.latents, "text": manifest.text}
        self._reading: Reading = reading
        self.shard = lru_cache(OPEN_FILES)(self._shard)
        self._loading: dict[Key, Future[Block]] = {}
        self._loaders = ThreadPoolExecutor(LOADERS, thread_name_prefix="blocks")

    def expect(self, keys: Iterable[Key]) -> None:
        """Load the blocks that are new, in the order given, and let go of all that are not named. From one thread."""
        before, self._loading = self._loading, {}
        for key in keys:
            if key not in self._loading:
                self._loading[key] = before.pop(key, None) or self._loaders.submit(self._load, *key)
        for future in before.values():
            future.cancel()

    def gather(self, kind: str, shards: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy row `rows[n]` of shard `shards[n]` to out[n], of [B, values of a row] float16; shorter rows end in zeros.

        Raises: UserError naming the file if a shard cannot be read.
        """
        order = np.lexsort((rows, shards))  # through each block from front to back
        shards, numbers, inside = shards[order], rows[order] // BLOCK_ROWS, rows[order] % BLOCK_ROWS
        firsts = np.flatnonzero(np.diff(shards, prepend=-1) | np.diff(numbers, prepend=-1))
        for first, end in zip(firsts.tolist(), [*firsts[1:].tolist(), len(rows)], strict=True):
            key = kind, int(shards[first]), int(numbers[first])
            expected = self._loading.get(key)
            block = expected.result() if expected else self.shard(*key[:2]).block(key[2], ahead=False)  # for a few rows
            _copy(block, inside[first:end].tolist(), out, order[first:end].tolist())

    def _load(self, kind: str, shard: int, number: int) -> Block:
        return self.shard(kind, shard).block(number)

    def _shard(self, kind: str, number: int) -> ArrowShard:
        return self._open[kind](number, self._reading)


def _copy(block: Block, rows: list[int], out: np.ndarray, places: list[int]) -> None:
    """The inner loop of the loader: nothing but one copy a row."""
    if block.scales is not None:
        _scale(block, rows, out, places)
        return
    values, starts, _ = block
    width = out.shape[1]
    for row, place in zip(rows, places, strict=True):
        start, end = starts[row], starts[row + 1]
        if end - start == width:
            out[place] = values[start:end]
        else:
            out[place, : end - start] = values[start:end]
            out[place, end - start :] = 0


def _scale(block: Block, rows: list[int], out: np.ndarray, places: list[int]) -> None:
    """As `_copy`, each int8 times the scale of its token: the numbers of `dequantised`, several times faster."""
    values, scales = block.values.reshape(-1, block.width), block.scales
    target = torch.from_numpy(out).view(len(out), -1, block.width)
    small = torch.empty(target.shape[1:], dtype=torch.int8)  # a map that cannot be written is no tensor: rows are copied
    for row, place in zip(rows, places, strict=True):
        start, end = (value // block.width for value in block.starts[row : row + 2])
        tokens = end - start
        small.numpy()[:tokens] = values[start:end]
        torch.mul(small[:tokens], torch.from_numpy(scales[start:end].copy())[:, None], out=target[place, :tokens])
        target[place, tokens:] = 0


def blocks_of(index: Index, ranges: np.ndarray) -> list[Key]:
    """The blocks of latents and of text that hold the rows [N, 2], first and end, of an index; each range lies in one
    block of latents."""
    first, last = ranges[:, 0], ranges[:, 1] - 1
    shards, latents = index.shard[first].tolist(), (index.row[first] // BLOCK_ROWS).tolist()
    text_first = (index.text[first] // BLOCK_ROWS).tolist()
    text_last = ((index.text[last] + index.texts[last] - 1) // BLOCK_ROWS).tolist()
    keys: list[Key] = []
    for shard, number, text, text_end in zip(shards, latents, text_first, text_last, strict=True):
        keys.append(("latents", shard, number))
        keys += [("text", shard, n) for n in range(text, text_end + 1)]
    return keys
