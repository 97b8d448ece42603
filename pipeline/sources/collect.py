"""The step `collect`: raw images to one webdataset shard and its ledger."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.artifacts import atomic, write_sidecar
from pipeline.config.steps import CollectSlice, Settings
from pipeline.errors import UserError
from pipeline.runtime import progress
from pipeline.sources import coco, folder, synthetic, webdataset
from pipeline.sources.sample import Listing
from pipeline.sources.shard import Ledger, ShardWriter

# What a new kind needs: a module here, and its config class. The imports are static for the sake of code_fingerprint.
READERS: dict[str, Callable[[str, Any, int], Listing]] = {
    "synthetic": synthetic.open_shard,
    "webdataset": webdataset.open_shard,
    "coco": coco.open_shard,
    "folder": folder.open_shard,
}


def run(slice_: CollectSlice, settings: Settings, shard: int, out: Path) -> None:
    """Collect shard number `shard` of a source into `out` (sidecar .json) and the .tar and .parquet beside it.

    Raises: UserError if the source is missing, empty or of another structure, or if more than
    runtime.max_bad_share of the shard's samples cannot be used.
    """
    source = slice_.source
    if shard not in range(source.shards):
        raise UserError(f"SHARD {shard}: sources.{slice_.name}.shards is {source.shards}, so give 0 to {source.shards - 1}")
    images, table = out.with_suffix(".tar"), out.with_suffix(".parquet")
    rejected = out.with_suffix(".rejected.parquet")
    ledger = Ledger()
    with atomic(images) as temporary:
        _fill(temporary, ledger, slice_, shard)
        _check_share(ledger, slice_.name, shard, settings.runtime.max_bad_share, rejected)
    ledger.write(table)
    files = {"images": (images, ledger.stored), "ledger": (table, ledger.rows)}
    write_sidecar(out, "images", files, _counts(slice_, shard, ledger))
    rejected.unlink(missing_ok=True)


def _fill(path: Path, ledger: Ledger, slice_: CollectSlice, shard: int) -> None:
    source = slice_.source
    listing = READERS[source.kind](slice_.name, source, shard)
    with (
        ShardWriter(path, slice_.name, source.min_side, source.store_side) as writer,
        progress(f"collect {slice_.name} {shard}", listing.total, listing.unit) as bar,
    ):
        for done, raw in listing.samples:
            ledger.add(writer.store(raw))
            bar.update(done - bar.n)
    if not ledger.rows:
        print(f"sources.{slice_.name}: shard {shard} of {source.shards} is empty, fewer shards would do", file=sys.stderr)


def _check_share(ledger: Ledger, name: str, shard: int, limit: float, rejected: Path) -> None:
    bad = ledger.bad.total()
    if bad <= limit * ledger.rows:
        return
    ledger.write(rejected)
    reasons = ", ".join(f"{reason} {count}" for reason, count in ledger.reasons().items())
    raise UserError(
        f"sources.{name}: {bad} of {ledger.rows} samples of shard {shard} cannot be used ({reasons}), more than "
        f"runtime.max_bad_share {limit:g} allows; {rejected} says which and why: mend them or raise runtime.max_bad_share"
    )


def _counts(slice_: CollectSlice, shard: int, ledger: Ledger) -> dict[str, Any]:
    return {
        "source": slice_.name,
        "source_kind": slice_.source.kind,
        "shard": shard,
        "seen": ledger.rows,
        "stored": ledger.stored,
        "captioned": ledger.captioned,
        "bad": ledger.reasons(),
    }
