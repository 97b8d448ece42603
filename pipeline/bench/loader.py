"""How fast training data is read: samples a second of one process, beside the floor.

The floor is a plain copy of as many bytes, and a bare read: rows of the mapped files at random, copied into a buffer,
without an index, an order or threads. All are timed by turns in the same process, and the best of several rounds counts,
because other work on the machine only ever slows a round down.

With `--cold` the files are taken out of the page cache before every round, and the floor is a read of as many bytes
of them from front to back.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.bench.synthetic import DataSet
from pipeline.config.schema import Stage
from pipeline.dataset import ArrowShard, Manifest, Reading
from pipeline.errors import UserError
from pipeline.train.data import Samples, read_ahead

GIGABYTE = 1e9


def main(argv: list[str]) -> int:
    """Measure and print one JSON object. Raises: UserError for data that cannot be made or read."""
    options = _parser().parse_args(argv)
    if options.cold and options.reading != "read":
        raise UserError("--cold: needs --reading read; what is mapped stays in memory")
    with _manifest(options) as path:
        found = measure(path, options.batch, options.rounds, options.samples, options.reading, options.cold)
        print(json.dumps(found, indent=1))
    return 0


def measure(path: Path, batch: int, rounds: int, samples: int, reading: Reading = "mapped", cold: bool = False) -> dict[str, Any]:
    """Speeds in samples and gigabytes (10⁹ bytes) a second, start-up in seconds, memory as bytes of a sample of the data
    set; `samples` is how many a round reads, in batches of `batch`."""
    resident = psutil.Process().memory_info().rss
    started = time.perf_counter()
    manifest = Manifest.read(path)
    data = Samples(manifest, Stage(px=8, mask_ratio=0, images=batch, batch_images=batch), seed=0, name="bench", reading=reading)
    data.stream.ahead(0, batch), data.stream.rows(0, batch)
    start_up = time.perf_counter() - started
    grown = psutil.Process().memory_info().rss - resident
    size = 2 * (int(np.prod(manifest.latent_shape)) + int(np.prod(manifest.text_shape)))
    count = max(1, samples // batch)
    kinds: dict[str, Callable[[int], None]] = {
        "loader": lambda turn: _drain(data, batch, range(turn * count * batch, (turn + 1) * count * batch, batch))
    }
    if cold:
        files = _ColdFiles(manifest, count * batch * size)
        seconds = _best(kinds | {"plain_read": files.read}, rounds, files.evict)
    else:
        seconds = _best(kinds | {"memcpy": _Copy(batch, size, count), "bare_read": _BareRead(manifest, batch, count)}, rounds)
    speed = {kind: count * batch / best for kind, best in seconds.items()}
    floors = [kind for kind in speed if kind != "loader"]
    result: dict[str, Any] = {
        "samples_per_second": round(speed["loader"]),
        "gigabytes_per_second": speed["loader"] * size / GIGABYTE,
    }
    for kind in floors:
        result |= {
            f"{kind}_samples_per_second": round(speed[kind]),
            f"{kind}_gigabytes_per_second": speed[kind] * size / GIGABYTE,
        }
    result |= {f"share_of_{kind}": speed["loader"] / speed[kind] for kind in floors}
    result |= {"start_up_seconds": start_up, "start_up_megabytes": grown / 1e6}
    result |= {"start_up_bytes_per_sample": grown / manifest.samples}
    facts = {"bytes_of_a_sample": size, "batch": batch, "reading": reading, "rounds": rounds, "samples_a_round": count * batch}
    facts |= {"samples": manifest.samples, "shards": len(manifest.shards)}
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in (result | facts).items()}


def _best(kinds: dict[str, Callable[[int], None]], rounds: int, before: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Seconds of the fastest round of each, by turns; the first round, which touches the memory, does not count."""
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(rounds + 1):
        for kind, work in kinds.items():
            before()
            started = time.perf_counter()
            work(turn)
            seconds[kind].append(time.perf_counter() - started)
    return {kind: min(times[1:]) for kind, times in seconds.items()}


def _drain(data: Samples, batch: int, starts: range) -> None:
    for _ in read_ahead(lambda start: data.batch(start, batch), starts):
        pass


class _Copy:
    """As many bytes as `count` batches from one place in memory to another."""

    def __init__(self, batch: int, size: int, count: int) -> None:
        self._from, self._to, self._count = np.ones((batch, size), np.uint8), np.empty((batch, size), np.uint8), count

    def __call__(self, turn: int) -> None:
        for _ in range(self._count):
            np.copyto(self._to, self._from)


class _BareRead:
    """Rows at random of the first shards' mapped files into the memory of one batch."""

    FILES = 8

    def __init__(self, manifest: Manifest, batch: int, count: int) -> None:
        numbers = range(min(len(manifest.shards), self.FILES))
        shards = [[of(number) for number in numbers] for of in (manifest.latents, manifest.text)]
        self._rows = [[row for shard in column for row in _rows(shard)] for column in shards]
        shapes = zip(self._rows, (manifest.latent_shape, manifest.text_shape), strict=True)
        self._out = [np.empty((batch, int(np.prod(shape))), rows[0].dtype) for rows, shape in shapes]
        self._batch, self._count = batch, count

    def __call__(self, turn: int) -> None:
        picks = np.random.default_rng(turn).integers(0, len(self._rows[0]), (self._count, self._batch)).tolist()
        latents, text = zip(self._rows, self._out, strict=True)
        for pick in picks:
            for rows, out in (latents, text):
                for place, row in enumerate(pick):
                    values = rows[row]
                    out[place, : len(values)] = values


class _ColdFiles:
    """The files of a data set, and `size` bytes of them read from front to back."""

    BLOCK = 8 * 2**20

    def __init__(self, manifest: Manifest, size: int) -> None:
        self._paths = sorted(
            {of(shard).path for shard in range(len(manifest.shards)) for of in (manifest.latents, manifest.text)}
        )
        self._size = size

    def evict(self) -> None:
        """Nothing of the files stays in the page cache."""
        for path in self._paths:
            with path.open("rb") as file:
                os.fsync(file.fileno())  # what is not yet written cannot leave
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, turn: int) -> None:
        left = self._size
        while left > 0:
            for path in self._paths:
                with path.open("rb", buffering=0) as file:
                    while left > 0 and (block := file.read(self.BLOCK)):
                        left -= len(block)


def _rows(shard: ArrowShard) -> Iterator[np.ndarray]:
    for number in range(shard.blocks):
        values, starts, _ = shard.block(number)
        yield from (values[start:end] for start, end in pairwise(starts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline bench loader", description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=Path, help="manifest of a data set; without it one of random numbers is made")
    parser.add_argument("--folder", type=Path, help="where to make it, 6.8 GB by default; it is removed afterwards")
    parser.add_argument("--rows", type=int, default=40_960, help="samples to make, a multiple of the shards")
    parser.add_argument("--shards", type=int, default=4, help="shards to make")
    parser.add_argument("--files", type=int, help="different shards among them, if not all: millions of rows on a small disk")
    parser.add_argument("--latent", type=int, nargs=3, default=(4, 32, 32), help="channels, height, width")
    parser.add_argument("--text", type=int, nargs=2, default=(77, 1024), help="tokens, width")
    parser.add_argument("--padding", choices=("attend", "drop"), default="attend", help="`drop`: text of any length")
    parser.add_argument("--storage", choices=("float16", "int8"), default="float16", help="how the text is stored")
    parser.add_argument("--batch", type=int, default=2048, help="samples a batch")
    parser.add_argument("--samples", type=int, default=40_960, help="samples a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement; the best counts")
    parser.add_argument("--reading", choices=("mapped", "read"), default="mapped", help="as runtime.data_reading")
    parser.add_argument("--cold", action="store_true", help="from the disk, not the page cache; a round: no more than there is")
    return parser


@contextmanager
def _manifest(options: argparse.Namespace) -> Iterator[Path]:
    if options.manifest:
        yield options.manifest
        return
    if options.rows % options.shards or options.rows <= 0:
        raise UserError(f"--rows: {options.rows} is no multiple of {options.shards} shards")
    made = DataSet(
        rows=options.rows,
        shards=options.shards,
        files=options.files,
        latent=tuple(options.latent),
        text=tuple(options.text),
        padding=options.padding,
        storage=options.storage,
    )
    folder = Path(tempfile.mkdtemp(prefix="loader-", dir=options.folder))
    try:
        yield made.write(folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
