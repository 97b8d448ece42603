"""GenEval's prompts: a JSON object a line with tag, include, exclude and prompt (evaluation_metadata.jsonl).

The file comes from elsewhere: its size, every text and every number are bounded.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from pipeline.errors import UserError
from pipeline.evaluate.prompt_files import MAX_LETTERS, MAX_ROWS, read_lines

Task = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
Color = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]
Relation = Literal["left of", "right of", "above", "below"]
TASKS, COLORS = get_args(Task), get_args(Color)
MAX_COUNT = 16  # of a class no more are looked at

Number = Annotated[int, Field(ge=1, le=MAX_COUNT, strict=True)]
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[a-z0-9][a-z0-9 '-]*$")]


class Row(BaseModel):
    """A part of a line. Unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Requirement(Row):
    """`count` objects of a class, in a colour, in a relation to those of an earlier requirement."""

    name: ClassName = Field(alias="class")
    count: Number = 1
    color: Color | None = None
    position: tuple[Relation, Annotated[int, Field(ge=0, strict=True)]] | None = None


class Exclusion(Row):
    """Not so many objects of a class, or more."""

    name: ClassName = Field(alias="class")
    count: Number


class Prompt(Row):
    """What to draw, and what must then be there."""

    tag: Task
    include: Annotated[list[Requirement], Field(min_length=1, max_length=MAX_COUNT)]
    exclude: Annotated[list[Exclusion], Field(max_length=MAX_COUNT)] = []
    prompt: Annotated[str, StringConstraints(min_length=1, max_length=MAX_LETTERS)]

    @model_validator(mode="after")
    def _targets_come_first(self) -> "Prompt":
        for i, wanted in enumerate(self.include):
            if wanted.position and wanted.position[1] >= i:
                raise ValueError(f"include.{i}.position: {wanted.position[1]} is no earlier entry of include")
        return self

    @property
    def names(self) -> set[str]:
        """Classes that it speaks of."""
        return {part.name for part in (*self.include, *self.exclude)}


class Prompts(NamedTuple):
    """`source` as the configuration names it, `sha256` of what was read."""

    source: str
    sha256: str
    rows: list[Prompt]

    @property
    def names(self) -> list[str]:
        """All classes, sorted: what an open-vocabulary detector is asked for."""
        return sorted(set().union(*(row.names for row in self.rows)))


def read_prompts(file: Path, source: str) -> Prompts:
    """Raises: UserError naming the file, the line and the key."""
    rows = [_parse(source, number, line) for number, line in enumerate(read_lines(file, source), 1) if line.strip()]
    if not 0 < len(rows) <= MAX_ROWS:
        raise UserError(f"{source}: {len(rows):,} prompts; it must have 1 to {MAX_ROWS:,}, a JSON object a line")
    return Prompts(source, hashlib.sha256(file.read_bytes()).hexdigest(), rows)


def _parse(source: str, number: int, line: str) -> Prompt:
    try:
        return Prompt.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"{part}." for part in first["loc"])[:-1]
        message = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        where = f"{source}: line {number}: {place}: " if place else f"{source}: line {number}: "
        raise UserError(f"{where}{message}; GenEval's evaluation_metadata.jsonl is the format") from error
