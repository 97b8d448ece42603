"""The way of the images from the ledgers to training, as tables whose rows add up."""

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts import read_json
from pipeline.errors import UserError

SHOWN_LICENCES = 12  # the others are shown as one
LONGEST_NAME = 80  # of a licence, which may be anything that a source gives
LEAKED_IMAGES = ("in_evaluation_set", "near_evaluation_set")
LEAKED_CAPTIONS = "caption_in_evaluation_set"

Manifest = dict[str, Any]


class Row(NamedTuple):
    """A label and a number for each source and for all. `part`: what went missing for one reason, taken off."""

    label: str
    numbers: list[int]
    part: bool = False


class Table(NamedTuple):
    """Of the stages that train on the same samples. `sources` are (name, role); `rows` count images, `captions` their
    captions, `licences` the images trained on; `leaked` images and captions were left out for the evaluation's sake."""

    stages: list[str]
    px: list[int]
    sources: list[tuple[str, str]]
    rows: list[Row]
    captions: list[Row]
    licences: list[Row]
    leaked: tuple[int, int]


def read(file: Path) -> Manifest:
    """A manifest whose account adds up. Raises: UserError if it is none, or does not add up."""
    manifest = read_json(file)
    if not isinstance(manifest, dict) or manifest.get("kind") != "manifest":
        raise UserError(f"{file}: not a manifest; delete it and run again")
    for source, count in manifest["counts"].items():
        if missing := {"captions", "licences"} - set(count):
            raise UserError(f"{file}: has no {' and '.join(sorted(missing))} of {source}; delete it and run again")
        if not _adds_up(count):
            raise UserError(f"{file}: the counts of {source} do not add up ({count}); delete it and run again")
    return manifest


def _adds_up(count: dict[str, Any]) -> bool:
    captions, bad = count["captions"], sum(count["bad"].values())
    parts = all(kind["collected"] == sum(kind["left_out"].values()) + kind["trained"] for kind in (count, captions))
    return parts and count["seen"] == bad + count["collected"] and sum(count["licences"].values()) == count["trained"]


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
    roles = {shard["source"]: shard["role"] for shard in stages[0]["shards"]}
    images = list(stages[0]["counts"].values())
    captions = [count["captions"] for count in images]
    return Table(
        stages=[stage["stage"] for stage in stages],
        px=sorted({stage["px"] for stage in stages}),
        sources=[(name, roles[name]) for name in stages[0]["counts"]],
        rows=[
            _row("offered by the source", [count["seen"] for count in images]),
            *_parts(images, "bad"),
            _row("stored", [count["collected"] for count in images]),
            *_parts(images, "left_out"),
            _row("trained on", [count["trained"] for count in images]),
        ],
        captions=[
            _row("of stored images", [count["collected"] for count in captions]),
            *_parts(captions, "left_out"),
            _row("trained on", [count["trained"] for count in captions]),
        ],
        licences=_licences(images),
        leaked=(
            sum(count["left_out"].get(reason, 0) for count in images for reason in LEAKED_IMAGES),
            sum(count["left_out"].get(LEAKED_CAPTIONS, 0) for count in captions),
        ),
    )


def _parts(counts: list[dict[str, Any]], kind: str) -> list[Row]:
    reasons = sorted({reason for count in counts for reason in count[kind]})
    missing = {reason: [-count[kind].get(reason, 0) for count in counts] for reason in reasons}
    return [_row(reason.replace("_", " "), numbers, part=True) for reason, numbers in missing.items()]


def _licences(counts: list[dict[str, Any]]) -> list[Row]:
    """The most frequent ones first, and all images as the sum."""
    names = sorted({name for count in counts for name in count["licences"]})
    rows = [_row(_short(name), [count["licences"].get(name, 0) for count in counts], part=True) for name in names]
    rows.sort(key=lambda row: -row.numbers[-1])
    if len(rest := rows[SHOWN_LICENCES:]) > 1:
        total = [sum(column) for column in zip(*(row.numbers for row in rest), strict=True)]
        rows = [*rows[:SHOWN_LICENCES], Row(f"{len(rest)} others", total, part=True)]
    return [*rows, _row("trained on", [count["trained"] for count in counts])]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _row(label: str, numbers: list[int], part: bool = False) -> Row:
    return Row(label, [*numbers, sum(numbers)], part)
