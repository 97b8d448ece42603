"""Images decoded, resized and cropped by worker processes, while this one encodes. They come in order, and are the same
for any number of workers."""

import io
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from PIL import Image

from pipeline.encode.buckets import Buckets
from pipeline.encode.overlap import in_order
from pipeline.errors import UserError
from pipeline.frozen.pixels import square

STORED = ("JPEG", "PNG")  # what a shard holds
PIECE = 16  # images a piece of work: the first batch comes soon, and all workers have a part in it
WORTH_A_WORKER = 256  # images for which a process is started, which takes a second
MOST_WORKERS = 16  # unless told otherwise: what they make goes through this process, which has other work

Sample = tuple[str, bytes]  # key and encoded image
Crop = int | Buckets  # squares of px pixels a side, or sizes of which each image takes one
Pixels = np.ndarray | list[np.ndarray]


class Squares(NamedTuple):
    """RGB of some samples: px -> uint8 [B, px, px, 3], buckets -> B arrays [height, width, 3]."""

    keys: list[str]
    pixels: dict[Crop, Pixels]


def squares(tar: str, samples: Sequence[Sample], crops: Sequence[Crop]) -> Squares:
    """Each image in each crop, from one decoding. Raises: UserError naming the shard and the image."""
    images = [_decode(tar, *sample) for sample in samples]
    return Squares([key for key, _ in samples], {crop: _cropped(images, crop) for crop in crops})


def _cropped(images: list[Image.Image], crop: Crop) -> Pixels:
    if isinstance(crop, Buckets):
        return [np.asarray(crop.fitted(image)) for image in images]
    return np.stack([np.asarray(square(image, crop)) for image in images])


def _decode(tar: str, key: str, data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=STORED).convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever damaged bytes lead to
        raise UserError(f"{tar}: image '{key}' does not decode ({error}); the shard is damaged, collect it again") from error


def workers_for(wanted: int | None, images: int) -> int:
    """`wanted`, or as many as there are cores beside the one that encodes and as the images are worth."""
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(1, cores - 1), MOST_WORKERS, images // WORTH_A_WORKER)


class Decoder:
    """`workers` processes, or with 0 this one. They start with the first piece of work and end with the block."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin) if workers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def batches(self, tar: Path, samples: Iterable[Sample], crops: Sequence[Crop], batch: int) -> Iterator[Squares]:
        """`batch` samples at a time, the last ones may be fewer.

        Raises: UserError if an image does not decode or a worker was killed.
        """
        pieces = _pieces(samples, batch)
        made = self._by_workers(str(tar), pieces, crops, batch) if self._pool else (squares(str(tar), p, crops) for p in pieces)
        gathered: list[Squares] = []
        for piece in made:
            gathered.append(piece)
            if sum(len(part.keys) for part in gathered) == batch:
                yield _joined(gathered)
                gathered = []
        if gathered:
            yield _joined(gathered)

    def _by_workers(self, tar: str, pieces: Iterator[list[Sample]], crops: Sequence[Crop], batch: int) -> Iterator[Squares]:
        depth = 2 * self.workers + -(-batch // PIECE)  # a batch lies ready, and every worker has a piece and one to follow
        try:
            yield from in_order((self._pool.submit(squares, tar, piece, crops) for piece in pieces), depth)
        except BrokenProcessPool as error:
            what = "a process that decodes its images was killed, perhaps for want of memory"
            raise UserError(f"{tar}: {what}; lower runtime.decode_workers or runtime.encode_batch and run again") from error


def _pieces(samples: Iterable[Sample], batch: int) -> Iterator[list[Sample]]:
    """PIECE samples at a time, fewer at the end of a batch."""
    rest = iter(samples)
    sizes = [min(PIECE, batch - start) for start in range(0, batch, PIECE)]
    for size in itertools.cycle(sizes):
        if not (piece := list(itertools.islice(rest, size))):  # to the end, where the reader compares the counts
            return
        yield piece


def _joined(parts: list[Squares]) -> Squares:
    if len(parts) == 1:
        return parts[0]
    pixels = {crop: _chained([part.pixels[crop] for part in parts]) for crop in parts[0].pixels}
    return Squares([key for part in parts for key in part.keys], pixels)


def _chained(parts: list[Pixels]) -> Pixels:
    if isinstance(parts[0], list):
        return list(itertools.chain.from_iterable(parts))
    return np.concatenate(parts)


def _begin() -> None:
    """A worker leaves Ctrl-C to the process that started it, and ends when that one is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
