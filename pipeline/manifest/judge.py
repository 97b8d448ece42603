"""Per shard: which rows can be trained on, and where the others stopped."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from pipeline.artifacts import Sidecar, read_sidecar
from pipeline.errors import UserError

HASH = ["hash_high", "hash_low"]  # 128 bits of the sha256: exact for any number of images, a quarter of the memory


@dataclass(frozen=True)
class Shard:
    """An encoded shard with the tables it was made from: `ledger` a row an image seen, `captions` a row an image kept."""

    sidecar: Sidecar
    ledger: pd.DataFrame
    captions: pd.DataFrame

    @property
    def source(self) -> str:
        return self.sidecar.info["source"]

    @property
    def rows(self) -> int:
        return self.sidecar.rows("text")

    @property
    def order(self) -> tuple[str, str]:
        return self.source, self.sidecar.info["shard"]


def read_shard(path: Path) -> Shard:
    """Raises: UserError if the images or captions are no longer those that were encoded."""
    sidecar = read_sidecar(path, "encoded")
    images, captions = (_input(sidecar, kind) for kind in ("images", "captions"))
    ledger = pq.read_table(images.file("ledger"), columns=["key", "status", "reason", "sha256", "width", "height"]).to_pandas()
    return Shard(sidecar, ledger, pq.read_table(captions.file("captions")).to_pandas())


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


def judge(shard: Shard, number: int, px: int, upscale: bool, evaluated: set[str]) -> pd.DataFrame:
    """One line a row of the shard: shard, row, key, hash and `reason`, null if the row can be trained on.

    The first reason that holds is given: no caption, unusable latent or text, smaller than `px`, image of the
    evaluation set.
    """
    images = _images(shard)
    info = shard.sidecar.info
    short_side = images[["width", "height"]].min(axis=1)
    reasons = [
        shard.captions["reason"],
        _bad_rows("latent", info["latents"][str(px)], shard.rows),
        _bad_rows("text", info["text"], shard.rows),
        _where((short_side < px) & (not upscale), "below_px"),
        _where(images["sha256"].isin(evaluated), "in_evaluation_set"),
    ]
    reason = reasons[0].astype(object).where(reasons[0].notna(), None)
    for later in reasons[1:]:
        reason = reason.where(reason.notna(), later)
    high, low = _hash_words(images["sha256"].tolist())
    place = {"shard": np.int32(number), "row": np.arange(shard.rows, dtype=np.int32), "key": images["key"]}
    return pd.DataFrame({**place, HASH[0]: high, HASH[1]: low, "reason": reason})


def _images(shard: Shard) -> pd.DataFrame:
    """Ledger lines of the collected images, in the shard's order."""
    collected = shard.ledger[shard.ledger["status"] == "ok"].set_index("key")
    assert collected.index.is_unique, f"{shard.sidecar.path}: a key is twice in the ledger"
    assert len(collected) == shard.rows == len(shard.captions), f"{shard.sidecar.path}: ledger, captions and rows differ"
    return collected.loc[shard.captions["key"]].reset_index()


def _bad_rows(what: str, facts: dict[str, Any], rows: int) -> pd.Series:
    found = pd.Series([None] * rows, dtype=object)
    for row, reason in facts["bad_rows"].items():
        found[int(row)] = f"{what}_{reason}"
    return found


def _where(condition: pd.Series, reason: str) -> pd.Series:
    return pd.Series(np.where(condition, reason, None), dtype=object)


def _hash_words(hashes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    words = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=">u8").reshape(-1, 4).astype(np.uint64)
    return words[:, 0], words[:, 1]
