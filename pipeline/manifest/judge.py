"""Per shard: which images can be trained on and with which captions, and where the others stopped."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from pipeline.artifacts import Sidecar, read_sidecar
from pipeline.errors import UserError

HASH = ["hash_high", "hash_low"]  # 128 bits of the sha256: exact for any number of images, a quarter of the memory
MOST_TEXTS = np.iinfo(np.int16).max


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


def evaluation_hashes(sidecars: list[Path]) -> set[str]:
    """The sha256 of every image that an evaluation source has seen."""
    tables = [pq.read_table(read_sidecar(path, "images").file("ledger"), columns=["sha256"]) for path in sidecars]
    return {value for table in tables for value in table["sha256"].to_pylist() if value is not None}


class Seen(NamedTuple):
    """How many samples a ledger has, and how many of them are bad, by reason."""

    samples: int
    bad: dict[str, int]


def judge(shard: Shard, number: int, px: int, upscale: bool, evaluated: set[str]) -> tuple[pd.DataFrame, Seen]:
    """A line an image of the shard, with its shard, row, text and texts (as in the index), key, hash and `reason`,
    which is missing if it can be trained on; and the count of its ledger.

    The first reason that holds is given: no usable caption, unusable latent, smaller than `px`, image of the
    evaluation set.
    """
    ledger = _table(shard.images.file("ledger"), "key", "status", "reason", "sha256", "width", "height")
    ok = ledger["status"] == "ok"
    images = ledger[ok].reset_index(drop=True)
    text, texts, text_reason = _texts(shard, images["key"])
    short_side = images[["width", "height"]].min(axis=1)
    reasons = [
        text_reason,
        _bad_rows("latent", shard.sidecar.info["latents"][str(px)], shard.rows),
        _where((short_side < px) & (not upscale), "below_px"),
        _where(images["sha256"].isin(evaluated), "in_evaluation_set"),
    ]
    reason = reasons[0]
    for later in reasons[1:]:
        reason = reason.where(reason.notna(), later)
    high, low = _hash_words(images["sha256"])
    place = {"shard": np.int32(number), "row": np.arange(shard.rows, dtype=np.int32), "text": text, "texts": texts}
    samples = pd.DataFrame({**place, "key": images["key"], HASH[0]: high, HASH[1]: low, "reason": reason})
    return samples, Seen(len(ledger), ledger["reason"][~ok].value_counts().to_dict())


def _table(file: Path, *columns: str) -> pd.DataFrame:
    return pq.read_table(file, columns=list(columns)).to_pandas()


def _texts(shard: Shard, keys: pd.Series) -> tuple[np.ndarray, np.ndarray, pd.Series]:
    """For every image the first row and the number of the text embeddings to choose among, and the reason of its first
    caption if there is none: it has no caption, or its embedding is unusable."""
    rows = _table(shard.captions.file("captions"), "key", "reason")
    firsts = (rows["key"] != rows["key"].shift()).to_numpy(dtype=bool)
    same = rows["key"][firsts].reset_index(drop=True).equals(keys)
    assert same and len(keys) == shard.rows, f"{shard.captions.path}: its images are not those of the ledger in order"
    assert len(rows) == shard.sidecar.rows("text"), f"{shard.sidecar.path}: captions and text embeddings differ in rows"
    faults = rows["reason"].where(rows["reason"].notna(), _bad_rows("text", shard.sidecar.info["text"], len(rows)))
    text, texts = longest_runs(np.cumsum(firsts) - 1, faults.isna().to_numpy(dtype=bool), len(keys))
    return text, texts, faults[firsts].reset_index(drop=True).where(texts == 0)


def longest_runs(image: np.ndarray, usable: np.ndarray, images: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `images` the first row (int32) and the length (int16) of its longest run of usable rows, the first of
    equal ones; length 0 if no row is usable. `image` [rows] is the ascending number of each row's image.

    A run, and not all usable rows, so that an index names them by two numbers; an unusable row among usable ones is rare.
    """
    rows = np.flatnonzero(usable)
    goes_on = (np.diff(rows) == 1) & (np.diff(image[rows]) == 0)
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(rows)), dtype=bool), ~goes_on]))
    lengths = np.diff(np.append(starts, len(rows)))
    owners = image[rows[starts]]
    order = np.lexsort((-lengths, owners))
    found, place = np.unique(owners[order], return_index=True)
    longest = order[place]
    first, count = np.zeros(images, dtype=np.int32), np.zeros(images, dtype=np.int16)
    first[found] = rows[starts[longest]]
    count[found] = np.minimum(lengths[longest], MOST_TEXTS)
    return first, count


def _bad_rows(what: str, facts: dict[str, Any], rows: int) -> pd.Series:
    """Reasons by row, missing where the row is good."""
    found = np.full(rows, None, dtype=object)
    for row, reason in facts["bad_rows"].items():
        found[int(row)] = f"{what}_{reason}"
    return pd.Series(found, dtype="str")


def _where(condition: pd.Series, reason: str) -> pd.Series:
    return pd.Series(np.where(condition, reason, None), dtype="str")


def _hash_words(hashes: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The first 128 bits of hexadecimal sha256, as two numbers."""
    words = np.frombuffer(bytes.fromhex(hashes.str.cat()), dtype=">u8").reshape(-1, 4).astype(np.uint64)
    return words[:, 0], words[:, 1]
