"""The run beside earlier ones, as `python -m pipeline compare` does it: no difference where two numbers may not be compared."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.report.compare import Row, compare, made_differently, read_card
from pipeline.report.words import score

NAMES = {
    "fid": "FID", "fid_by_resize.clean": "FID, clean resizing", "fid_by_resize.legacy_pytorch": "FID, legacy resizing",
    "fid_infinity": "FID∞", "kid": "KID", "clip_fid": "CLIP-FID", "cmmd": "CMMD", "fd_dino": "FD-DINOv2",
    "clip_score": "CLIP score", "geneval.score": "GenEval", "accuracy.one_object.all": "all right, one object",
    "accuracy.two_objects.all": "all right, two objects",
}  # fmt: skip
DISTANCES = ("fid", "kid", "clip_fid", "cmmd", "fd_dino")  # lower is better, of these and of what is named after them


class Cell(NamedTuple):
    """A score of an earlier run. `difference` says how this run compares, empty where it may not; `kind` is better, worse,
    same or refused."""

    value: str
    difference: str
    kind: str


class Comparison(NamedTuple):
    """Columns are earlier runs; `rows` have a name, this run's value and a cell a column. By column: `refused`, why scores
    are not compared, each reason with those it holds for, and `made`, what else differs: (key, earlier, now)."""

    files: list[str]
    rows: list[tuple[str, str, list[Cell]]]
    refused: list[list[tuple[str, str]]]
    made: list[list[tuple[str, str, str]]]


def comparison(card: Path, earlier: list[str]) -> Comparison | None:
    """None without earlier runs. Raises: UserError for a file that is missing or is no card."""
    if not earlier:
        return None
    now, cards = read_card(card), [read_card(Path(file)) for file in earlier]
    columns = [{row.name: row for row in compare(then, now)} for then in cards]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [_row(name, [column.get(name) for column in columns]) for name in names]
    made = [made_differently(then, now) for then in cards]
    return Comparison(earlier, rows, [_reasons(column.values()) for column in columns], made)


def _row(name: str, found: list[Row | None]) -> tuple[str, str, list[Cell]]:
    now = next((row.b for row in found if row is not None and row.b is not None), None)
    return _named(name), _told(now), [_cell(row) for row in found]


def _cell(row: Row | None) -> Cell:
    if row is None or row.a is None:
        return Cell("–", "", "same")
    if row.refused:
        return Cell(_told(row.a), "not comparable", "refused")
    if row.difference is None:
        return Cell(_told(row.a), "", "same")
    change = score(abs(row.difference))
    if change == "0":
        return Cell(_told(row.a), "the same", "same")
    better = (row.difference < 0) == (row.name.partition("_by_")[0].partition("_inf")[0] in DISTANCES)
    signed = f"{'−' if row.difference < 0 else '+'}{change}"
    return Cell(_told(row.a), f"{signed}, {'better' if better else 'worse'} now", "better" if better else "worse")


def _reasons(rows: Iterable[Row]) -> list[tuple[str, str]]:
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        if row.refused:
            by_reason.setdefault(row.refused, []).append(_named(row.name))
    return [(", ".join(names), reason) for reason, names in by_reason.items()]


def _named(name: str) -> str:
    return NAMES.get(name, name.replace("_", " "))


def _told(value: float | None) -> str:
    return "–" if value is None else score(value)
