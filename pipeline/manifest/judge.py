"""Per shard: which images can be trained on and with which captions, and where the others stopped."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts import Sidecar, read_sidecar
from pipeline.config.schema import Range
from pipeline.config.steps import ManifestSlice
from pipeline.dataset import ArrowShard
from pipeline.errors import UserError
from pipeline.manifest import reasons
from pipeline.manifest.captions import Texts, evaluation_captions, judge_captions
from pipeline.manifest.samples import Names, Samples

LEDGER_COLUMNS = ["key", "status", "reason", "sha256", "phash", "width", "height", "license"]
CAPTION_COLUMNS = ["key", "reason", "captioner"]
NO_HASH = "0" * 16  # as of a black image: it is like no other


@dataclass(frozen=True)
class Shard:
    """An encoded shard and what it was made from."""

    sidecar: Sidecar
    images: Sidecar
    captions: Sidecar

    @property
    def source(self) -> str:
        return self.sidecar.info["source"]

    @property
    def rows(self) -> int:
        """Images."""
        return self.images.rows("images")

    @property
    def order(self) -> tuple[str, str]:
        return self.source, self.sidecar.info["shard"]

    def row_buckets(self, px: int) -> np.ndarray | int:
        """The bucket [rows] of each image; 0 where all latents have one shape."""
        if "buckets" not in self.sidecar.info["latents"][str(px)]:
            return 0
        found = ArrowShard(self.sidecar.file(f"latents-{px}"), "latent").row_buckets
        assert len(found) == self.rows, f"{self.sidecar.path}: its latents are not those of its images"
        return found

    def least_sides(self, px: int, buckets: np.ndarray | int) -> np.ndarray | int:
        """Width and height [2, rows], in pixels, that an image of these buckets is not enlarged from; px for squares."""
        made = self.sidecar.info["latents"][str(px)]
        if "buckets" not in made:
            return px
        factor = px // made["shape"][1]
        return factor * np.array(made["buckets"])[buckets, ::-1].T


def read_shard(path: Path) -> Shard:
    """Raises: UserError if the images or captions are no longer those that were encoded."""
    sidecar = read_sidecar(path, "encoded")
    return Shard(sidecar, *(_input(sidecar, kind) for kind in ("images", "captions")))


def _input(encoded: Sidecar, kind: str) -> Sidecar:
    record = encoded.info[kind]
    sidecar = read_sidecar(encoded.path.parent / record["path"], kind)
    if sidecar.sha256(kind) != record["sha256"]:
        raise UserError(f"{encoded.path}: made from other {kind} than {sidecar.path} now names; run encode again")
    return sidecar


class Evaluated(NamedTuple):
    """What an evaluation must not have in common with training."""

    sha256: pa.Array  # of every image it has seen
    phash: np.ndarray  # uint64
    captions: frozenset[bytes]  # in their plain form

    @classmethod
    def read(cls, images: list[Path], captions: list[Path]) -> Self:
        """From sidecars of the evaluation's sources."""
        ledgers = [read_sidecar(path, "images").table("ledger", ["sha256", "phash"]) for path in images]
        sha256 = [column for ledger in ledgers for column in ledger["sha256"].drop_null().chunks]
        hashes = [words(ledger["phash"].drop_null(), 1)[:, 0] for ledger in ledgers]
        whole = pa.concat_arrays(sha256) if sha256 else pa.array([], pa.string())
        return cls(whole, np.concatenate([np.zeros(0, np.uint64), *hashes]), evaluation_captions(captions))


class Seen(NamedTuple):
    """What the ledger and the captions of a shard hold."""

    samples: int
    bad: Counter[str]  # of these, by reason
    keys: pa.Array  # of those that are not bad
    captions: int
    captions_left_out: Counter[str]  # of these, unusable ones by reason, whatever became of their images


class Judge:
    """Looks at one shard after another. `reasons` and `licences` name the numbers in what it finds, `taken_down` counts
    the samples that the take-down file names."""

    def __init__(self, slice_: ManifestSlice, evaluated: Evaluated, taken_down: dict[str, set[str]]) -> None:
        self.reasons, self.licences, self.taken_down = Names(), Names(), 0
        self._slice, self._filters, self._evaluated = slice_, slice_.filters, evaluated
        self._taken_down = {source: pa.array(sorted(keys)) for source, keys in taken_down.items()}
        looks_at_captions = evaluated.captions or self._filters.min_caption or self._filters.max_caption is not None
        self._caption_columns = [*CAPTION_COLUMNS, *(["caption"] if looks_at_captions else [])]
        self._ledger_columns = [*LEDGER_COLUMNS, *(["scores"] if self._filters.scores else [])]

    def __call__(self, shard: Shard, number: int) -> tuple[Samples, Seen]:
        """The images of the shard that is `number`-th of all, each with the first reason of its own that holds, and an
        account of the tables. What an image has in common with others is not looked at here."""
        ledger = shard.images.table("ledger", self._ledger_columns)
        is_taken_down = self._is_taken_down(shard.source, ledger["key"])
        self.taken_down += int(is_taken_down.sum())
        stored = pc.equal(ledger["status"], "ok")
        images, keys = ledger.filter(stored), ledger["key"].filter(stored).combine_chunks()
        captions = self._captions(shard, keys)

        samples = Samples.empty(shard.rows)
        samples.shard[:], samples.row[:] = number, np.arange(shard.rows)
        samples.text[:], samples.texts[:], samples.given[:] = captions.text, captions.texts, captions.given
        samples.sha256_high[:], samples.sha256_low[:] = words(images["sha256"], 4)[:, :2].T
        samples.phash[:] = words(pc.fill_null(images["phash"], NO_HASH), 1)[:, 0]
        samples.licence[:] = self.licences.numbers(images["license"])
        sides = np.stack([images[side].to_numpy() for side in ("width", "height")])
        samples.side[:] = sides.min(axis=0)
        samples.bucket[:] = shard.row_buckets(self._slice.px)

        samples.leave_out(is_taken_down[stored.to_numpy()], self.reasons.number(reasons.TAKEN_DOWN))
        samples.leave_out(self._is_unlicensed(images["license"]), self.reasons.number(reasons.LICENCE))
        samples.leave_out(captions.reason > 0, captions.reason)
        for reason, where in self._unusable(images, sides):
            samples.leave_out(where, self.reasons.number(reason))
        for reason, where in self._unfit(shard, sides, samples.bucket):
            np.copyto(samples.unfit, self.reasons.number(reason), where=where & (samples.unfit == 0), casting="same_kind")
        bad = Counter(ledger["reason"].filter(pc.invert(stored)).to_pylist())
        return samples, Seen(len(ledger), bad, keys, captions.captions, captions.left_out)

    def _captions(self, shard: Shard, keys: pa.Array) -> Texts:
        table = shard.captions.table("captions", self._caption_columns)
        assert len(table) == shard.sidecar.rows("text"), f"{shard.sidecar.path}: captions and text embeddings differ in rows"
        unusable = shard.sidecar.info["text"]["bad_rows"]
        found = judge_captions(table, keys, unusable, self._filters, self._evaluated.captions, self.reasons)
        assert len(found.texts) == shard.rows, f"{shard.captions.path}: its images are not those of the ledger"
        return found

    def _is_taken_down(self, source: str, keys: pa.ChunkedArray) -> np.ndarray:
        if source not in self._taken_down:
            return np.zeros(len(keys), dtype=bool)
        return pc.is_in(keys, self._taken_down[source]).to_numpy()

    def _is_unlicensed(self, licences: pa.ChunkedArray) -> np.ndarray:
        if self._filters.licences is None:
            return np.zeros(len(licences), dtype=bool)
        return ~pc.is_in(licences, pa.array(self._filters.licences, pa.string())).to_numpy()

    def _unfit(self, shard: Shard, sides: np.ndarray, buckets: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Reasons that hold at the stage's resolution, and the rows [N] bool that they hold for; `sides` are [2, N]."""
        for row, kind in shard.sidecar.info["latents"][str(self._slice.px)]["bad_rows"].items():
            yield reasons.LATENT.format(kind), np.arange(shard.rows) == int(row)
        if not self._slice.sources[shard.source].upscale:
            yield reasons.BELOW_PX, (sides < shard.least_sides(self._slice.px, buckets)).any(axis=0)

    def _unusable(self, images: pa.Table, sides: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The same for what is known of an image at any resolution, without its captions."""
        if self._filters.max_aspect is not None:
            yield reasons.ASPECT_RATIO, sides.max(axis=0) > sides.min(axis=0) * self._filters.max_aspect
        for name, bounds in self._filters.scores.items():
            yield reasons.SCORE, out_of_range(images["scores"], name, bounds)
        yield reasons.LEAKED, pc.is_in(images["sha256"], self._evaluated.sha256).to_numpy()


def out_of_range(scores: pa.ChunkedArray, name: str, bounds: Range) -> np.ndarray:
    """Which of the maps have a score of that name below or above its bounds. A score that is not there is neither."""
    scores = scores.combine_chunks()
    starts = scores.offsets.to_numpy()
    maps = np.repeat(np.arange(len(scores)), np.diff(starts))
    entries = slice(starts[0], starts[-1])
    named = pc.equal(scores.keys[entries], name).to_numpy(zero_copy_only=False)
    # As float32, which the bounds become too: 0.2 is not above 0.2.
    values = scores.items[entries].to_numpy(zero_copy_only=False)[named]
    wrong = np.zeros(len(scores), dtype=bool)
    for bound, beyond in ((bounds.min, np.less), (bounds.max, np.greater)):
        if bound is not None:
            wrong[maps[named][beyond(values, np.float32(bound))]] = True
    return wrong


def words(hashes: pa.ChunkedArray, count: int) -> np.ndarray:
    """[N, count] uint64 of hashes of 16 · count hexadecimal digits."""
    digits = "".join(hashes.to_pylist())
    return np.frombuffer(bytes.fromhex(digits), dtype=">u8").reshape(-1, count).astype(np.uint64)
