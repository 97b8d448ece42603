"""The step `collect`: raw images to one webdataset shard and its ledger."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifacts import atomic, read_sidecar, write_sidecar
from pipeline.config.sources import has_table
from pipeline.config.steps import CollectSlice, Settings
from pipeline.download.files import Files
from pipeline.errors import UserError
from pipeline.ledger import FAILURES, Ledger
from pipeline.runtime import progress
from pipeline.sources import archives, coco, folder, hf_parquet, synthetic, url_list, webdataset
from pipeline.sources.sample import Inputs, Listing
from pipeline.sources.shard import ShardWriter

# What a new kind needs: a module here, and its config class. The imports are static for the sake of code_fingerprint.
READERS: dict[str, Callable[[str, Any, int, Inputs], Listing]] = {
    "synthetic": synthetic.open_shard,
    "webdataset": webdataset.open_shard,
    "coco": coco.open_shard,
    "hf_parquet": hf_parquet.open_shard,
    "url_list": url_list.open_shard,
    "archives": archives.open_shard,
    "folder": folder.open_shard,
}

NO_LICENCE = "none given"
MAX_LICENCES = 200


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
    if has_table(source) and table is None:
        raise UserError(
            f"--table: sources.{slice_.name} has a table; make it with `python -m pipeline table` and give its sidecar"
        )
    least = settings.yields.get(slice_.name, source.least_yield)
    rows_of = read_sidecar(table, "table").file("table") if table else None
    inputs = Inputs(Files(downloads, settings.runtime.downloads), rows_of, least, settings.runtime.downloads)
    listing = READERS[source.kind](slice_.name, source, shard, inputs)
    rejected = out.with_suffix(".rejected.parquet")
    tally = _Tally()
    with atomic(images) as temporary:
        _fill(temporary, tally, slice_, shard, listing)
        _say(tally, slice_, shard)
        _check_yield(tally.ledger, slice_.name, shard, least, rejected)
    tally.ledger.write(rows)
    files = {"images": (images, tally.ledger.stored), "ledger": (rows, tally.ledger.rows)}
    write_sidecar(out, "images", files, _counts(slice_, shard, tally, listing))
    rejected.unlink(missing_ok=True)
    listing.after()


@dataclass
class _Tally:
    """What became of the samples of a shard."""

    ledger: Ledger = field(default_factory=Ledger)
    passed: int = 0  # over by the key `fraction`, neither seen nor in the ledger
    licences: Counter[str] = field(default_factory=Counter)  # of the stored

    def add(self, row: dict[str, Any]) -> None:
        self.ledger.add(row)
        if row["status"] == "ok":
            self.licences[row["license"] or NO_LICENCE] += 1

    def licences_shown(self) -> dict[str, int]:
        """The most frequent first; where they are free text, those beyond MAX_LICENCES as one."""
        ordered = sorted(self.licences.items(), key=lambda item: (-item[1], item[0]))
        others = sum(count for _, count in ordered[MAX_LICENCES:])
        return dict(ordered[:MAX_LICENCES]) | ({"others": others} if others else {})


def _fill(path: Path, tally: _Tally, slice_: CollectSlice, shard: int, listing: Listing) -> None:
    with (
        ShardWriter(path, slice_.name, slice_.source) as writer,
        progress(f"collect {slice_.name} {shard}", listing.total, listing.unit) as bar,
    ):
        for done, raw in listing.samples:
            if raw is None:
                tally.passed += 1
            else:
                tally.add(writer.store(raw))
            bar.n = round(done, 2)  # set, not added to: sums of fractions are no round numbers
            bar.update(0)


def _say(tally: _Tally, slice_: CollectSlice, shard: int) -> None:
    ledger, reasons = tally.ledger, tally.ledger.reasons()
    bad = f"; {_listed(reasons)}" if reasons else ""
    passed = f"; {tally.passed} passed over by `fraction`" if tally.passed else ""
    print(f"collect {slice_.name} {shard}: {ledger.rows} seen, {ledger.stored} stored{bad}{passed}", file=sys.stderr)
    if not ledger.rows and not tally.passed:
        print(f"sources.{slice_.name}: shard {shard} of {slice_.source.shards} is empty, fewer shards would do", file=sys.stderr)


def _check_yield(ledger: Ledger, name: str, shard: int, least: float, rejected: Path) -> None:
    if ledger.received_share >= least:
        return
    ledger.write(rejected)
    failures = {reason: count for reason, count in ledger.reasons().items() if reason in FAILURES}
    wanted, first = ledger.stored + sum(failures.values()), next(iter(failures))
    raise UserError(
        f"sources.{name}: {ledger.stored} of {wanted} wanted samples of shard {shard} were received, a share below min_yield "
        f"{least:g}; it failed for {_listed(failures)}, most for {first} ({FAILURES[first]}); {rejected} says which: mend them, "
        f"or lower sources.{name}.min_yield"
    )


def _listed(reasons: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in reasons.items())


def _counts(slice_: CollectSlice, shard: int, tally: _Tally, listing: Listing) -> dict[str, Any]:
    """seen = stored + bad; `passed_over` by the key `fraction`: files of the whole source, samples of the shard's files."""
    ledger = tally.ledger
    return {
        "source": slice_.name,
        "source_kind": slice_.source.kind,
        "shard": shard,
        "seen": ledger.rows,
        "stored": ledger.stored,
        "captioned": ledger.captioned,
        "bad": ledger.reasons(),
        "licences": tally.licences_shown(),
        "passed_over": {"files": listing.files_passed, "samples": tally.passed},
    }
