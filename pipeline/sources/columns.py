"""The key `columns`: what a row of a table says of a sample."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from pipeline.config.sources import Columns
from pipeline.errors import UserError


def value(row: dict[str, Any], name: str | None) -> Any:
    """What stands in a column; a dot in its name leads into a nested one. None if it is not there."""
    if name is None or name in row:
        return row.get(name)
    found: Any = row
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def captions(row: dict[str, Any], columns: Columns) -> tuple[Any, ...]:
    """All captions of a row in the order of `columns.captions`, lists laid out flat."""
    cells = [value(row, name) for name in columns.captions]
    flat = [item for cell in cells for item in (cell if isinstance(cell, list) else [cell])]
    return tuple(item for item in flat if item is not None)


def scores(row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    return {score: value(row, name) for score, name in columns.scores.items()}


class Needed(NamedTuple):
    """Columns that a table must have, all of the one and one of the other, and those that are read if they are there."""

    all_of: tuple[str, ...]
    one_of: tuple[str, ...]
    optional: tuple[str, ...] = ()
    hint: str = "name its own under `columns`"

    @classmethod
    def of(cls, columns: Columns, *keys: str) -> Self:
        """What is named: the columns of `keys`, what every kind reads, and the captions."""
        single = [getattr(columns, key) for key in (*keys, "license", "sha256")]
        return cls(tuple(name for name in (*single, *columns.scores.values()) if name is not None), tuple(columns.captions))

    def names(self) -> tuple[str, ...]:
        return self.all_of + self.one_of + self.optional

    def check(self, where: str, found: Iterable[str]) -> None:
        """Raises: UserError naming the columns that a table lacks."""
        there = list(dict.fromkeys(found))
        missing = [name for name in self.all_of if name not in there]
        if self.one_of and not set(self.one_of) & set(there):
            missing.append(" or ".join(self.one_of))
        if missing:
            listed = ", ".join(there[:40]) or "none"
            raise UserError(f"{where}: no column {', '.join(missing)} (there are: {listed}); {self.hint}")
