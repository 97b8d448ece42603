"""The way of the images from the ledgers to training, as tables whose rows add up."""

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts import read_json
from pipeline.errors import UserError

Manifest = dict[str, Any]


class Row(NamedTuple):
    """A label and a number for each source and for all. `part`: what went missing for one reason, taken off."""

    label: str
    numbers: list[int]
    part: bool = False


class Table(NamedTuple):
    """Of the stages that train on the same samples. `sources` are (name, role)."""

    stages: list[str]
    px: list[int]
    sources: list[tuple[str, str]]
    rows: list[Row]


def read(file: Path) -> Manifest:
    """A manifest whose account adds up. Raises: UserError if it is none, or does not add up."""
    manifest = read_json(file)
    if not isinstance(manifest, dict) or manifest.get("kind") != "manifest":
        raise UserError(f"{file}: not a manifest; delete it and run again")
    for source, count in manifest["counts"].items():
        bad, left_out = (sum(count[kind].values()) for kind in ("bad", "left_out"))
        if count["seen"] != bad + count["collected"] or count["collected"] != left_out + count["trained"]:
            raise UserError(f"{file}: the counts of {source} do not add up ({count}); delete it and run again")
    return manifest


def trained(manifest: Manifest) -> int:
    """Images that the stage trains on."""
    return sum(count["trained"] for count in manifest["counts"].values())


def account(manifests: list[Manifest]) -> list[Table]:
    """A table for each set of stages with the same counts, in the order of the schedule."""
    tables: list[tuple[Manifest, list[Manifest]]] = []
    for manifest in manifests:
        same = next((stages for first, stages in tables if first["counts"] == manifest["counts"]), None)
        if same is None:
            tables.append((manifest, [manifest]))
        else:
            same.append(manifest)
    return [_table(stages) for _, stages in tables]


def _table(stages: list[Manifest]) -> Table:
    counts = stages[0]["counts"]
    roles = {shard["source"]: shard["role"] for shard in stages[0]["shards"]}
    rows = [
        _row("offered by the source", [count["seen"] for count in counts.values()]),
        *_parts(counts, "bad"),
        _row("stored", [count["collected"] for count in counts.values()]),
        *_parts(counts, "left_out"),
        _row("trained on", [count["trained"] for count in counts.values()]),
    ]
    sources = [(name, roles[name]) for name in counts]
    return Table([stage["stage"] for stage in stages], sorted({stage["px"] for stage in stages}), sources, rows)


def _parts(counts: dict[str, Any], kind: str) -> list[Row]:
    reasons = sorted({reason for count in counts.values() for reason in count[kind]})
    missing = {reason: [-count[kind].get(reason, 0) for count in counts.values()] for reason in reasons}
    return [_row(reason.replace("_", " "), numbers, part=True) for reason, numbers in missing.items()]


def _row(label: str, numbers: list[int], part: bool = False) -> Row:
    return Row(label, [*numbers, sum(numbers)], part)
