"""Pictures of the page as data URIs: those that an evaluation chose, and what every stage draws."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from pipeline.artifacts import read_json
from pipeline.errors import UserError

GRID_PX, CELL_PX, PLOT_PX = 1024, 256, 1200  # larger pictures are made smaller
PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
View = dict[str, Any]


class Grid(NamedTuple):
    """What a stage draws. `cells` are its pictures one by one, where the file names its `prompts`; else `whole` is all of it."""

    stage: str
    px: int
    mask_ratio: float
    images_seen: int  # since the first stage
    prompts: list[str]
    cells: list[str]
    whole: str


def listed_pictures(file: Path, pictures: tuple[str, ...], texts: tuple[str, ...], rows: list[View] | None = None) -> list[View]:
    """Entries of `file`, each with pictures and texts by these names; `rows` if the file was read already.

    Raises: UserError if an entry is none, so that nothing but text and a PNG in a data URI reaches the page.
    """
    rows = read_json(file) if rows is None else rows
    if not isinstance(rows, list):
        raise UserError(f"{file}: not a list of pictures; delete it and evaluate again")
    for number, row in enumerate(rows):
        for name in (*pictures, *texts):
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, str):
                raise UserError(f"{file}: entry {number} has no {name}; delete it and evaluate again")
            if name in pictures and not PICTURE.fullmatch(value):
                raise UserError(f"{file}: {name} of entry {number} is no PNG in a data URI; delete it and evaluate again")
    return rows


def picture(file: Path, px: int = PLOT_PX) -> str:
    """A PNG file as data URI, at most `px` a side. Raises: UserError if it is no picture."""
    return _uri(_opened(file), px)


def grid(file: Path, summary: View) -> Grid:
    """The sample grid of a stage. Raises: UserError if it is no picture."""
    image, stage = _opened(file), summary["config"]["stage"]
    prompts, cells = _cells(image)
    whole = "" if cells else _uri(image, GRID_PX)
    return Grid(summary["stage"], stage["px"], stage["mask_ratio"], summary["images_seen_total"], prompts, cells, whole)


def rows_by_prompt(grids: list[Grid]) -> list[tuple[str, list[str]]]:
    """A prompt and the picture of every stage; empty unless all stages draw the same prompts."""
    prompts = grids[0].prompts
    if not prompts or any(one.prompts != prompts for one in grids):
        return []
    return [(prompt, [one.cells[number] for one in grids]) for number, prompt in enumerate(prompts)]


def _opened(file: Path) -> Image.Image:
    try:
        with Image.open(file, formats=["png"]) as image:
            image.load()
            return image
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: not a readable picture ({error}); make it again") from error


def _cells(image: Image.Image) -> tuple[list[str], list[str]]:
    """Prompts and pictures of a grid that says which they are: text of the PNG, which may be anything."""
    try:
        told = json.loads(getattr(image, "text", {}).get("grid", "{}"))
        prompts, columns = told["prompts"], told["columns"]
        side = image.width // columns
        fits = 0 < len(prompts) <= columns * (image.height // side) and all(isinstance(prompt, str) for prompt in prompts)
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        return [], []
    if not isinstance(prompts, list) or not fits:
        return [], []
    corners = [(number % columns * side, number // columns * side) for number in range(len(prompts))]
    return prompts, [_uri(image.crop((x, y, x + side, y + side)), CELL_PX) for x, y in corners]


def _uri(image: Image.Image, px: int) -> str:
    small, content = image.copy(), io.BytesIO()
    small.thumbnail((px, px), Image.Resampling.LANCZOS)
    small.info = {}  # its text is not for the page
    small.save(content, format="png")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
