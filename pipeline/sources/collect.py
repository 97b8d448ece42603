"""The step `collect`: raw images to one webdataset shard and its ledger."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.artifacts import atomic, read_sidecar, write_sidecar
from pipeline.config.steps import CollectSlice, Settings
from pipeline.download.files import Files
from pipeline.errors import UserError
from pipeline.ledger import Ledger
from pipeline.runtime import progress
from pipeline.sources import coco, folder, synthetic, webdataset
from pipeline.sources.sample import Inputs, Listing
from pipeline.sources.shard import ShardWriter

# What a new kind needs: a module here, and its config class. The imports are static for the sake of code_fingerprint.
READERS: dict[str, Callable[[str, Any, int, Inputs], Listing]] = {
    "synthetic": synthetic.open_shard,
    "webdataset": webdataset.open_shard,
    "coco": coco.open_shard,
    "folder": folder.open_shard,
}


def run(slice_: CollectSlice, settings: Settings, shard: int, table: Path | None, downloads: Path, out: Path) -> None:
    """Collect shard number `shard` of a source into `out` (sidecar .json) and the .tar and .parquet beside it. `table` is
    the sidecar of the source's table, `downloads` the folder for what is fetched.

    Raises: UserError if the source is missing, empty or of another structure, or if the share of the shard's samples
    that were received is below the source's min_yield.
    """
    source = slice_.source
    if shard not in range(source.shards):
        raise UserError(f"SHARD {shard}: sources.{slice_.name}.shards is {source.shards}, so give 0 to {source.shards - 1}")
    images, rows = out.with_suffix(".tar"), out.with_suffix(".parquet")
    inputs = Inputs(Files(downloads, settings.runtime.downloads), read_sidecar(table, "table").file("table") if table else None)
    rejected = out.with_suffix(".rejected.parquet")
    ledger = Ledger()
    with atomic(images) as temporary:
        _fill(temporary, ledger, slice_, shard, inputs)
        _check_yield(ledger, slice_.name, shard, settings.yields.get(slice_.name, source.least_yield), rejected)
    ledger.write(rows)
    files = {"images": (images, ledger.stored), "ledger": (rows, ledger.rows)}
    write_sidecar(out, "images", files, _counts(slice_, shard, ledger))
    rejected.unlink(missing_ok=True)


def _fill(path: Path, ledger: Ledger, slice_: CollectSlice, shard: int, inputs: Inputs) -> None:
    source = slice_.source
    listing = READERS[source.kind](slice_.name, source, shard, inputs)
    with (
        ShardWriter(path, slice_.name, source.min_side, source.store_side) as writer,
        progress(f"collect {slice_.name} {shard}", listing.total, listing.unit) as bar,
    ):
        for done, raw in listing.samples:
            ledger.add(writer.store(raw))
            bar.update(done - bar.n)
    if not ledger.rows:
        print(f"sources.{slice_.name}: shard {shard} of {source.shards} is empty, fewer shards would do", file=sys.stderr)


def _check_yield(ledger: Ledger, name: str, shard: int, least: float, rejected: Path) -> None:
    if ledger.received_share >= least:
        return
    ledger.write(rejected)
    reasons = ", ".join(f"{reason} {count}" for reason, count in ledger.reasons().items())
    raise UserError(
        f"sources.{name}: {ledger.stored} of {ledger.rows} samples of shard {shard} were received ({reasons}), a share below "
        f"min_yield {least:g}; {rejected} says which and why: mend them, or lower sources.{name}.min_yield"
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
