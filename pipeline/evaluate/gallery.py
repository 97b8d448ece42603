"""Generated images beside the real ones: a grid for people and a JSON with the images in it for the report."""

import base64
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.artifacts import atomic, write_json

GALLERY_PAIRS, FAILURES, GALLERY_PX = 64, 24, 128  # larger images are made smaller for the report's sake
GRID_PAIRS, GRID_COLUMNS = 32, 4
TILE_PX, GAP_PX, TEXT_LINES, FONT_PX = 128, 8, 3, 12
Pair = tuple[np.ndarray, np.ndarray]  # generated and real, [px, px, 3] uint8


def write_gallery(file: Path, names: Sequence[dict[str, Any]], pairs: Sequence[Pair]) -> None:
    """A list of {**name, generated, real}, the images as data URIs of PNGs."""
    entries = [
        {**name, "generated": data_uri(made), "real": data_uri(real)} for name, (made, real) in zip(names, pairs, strict=True)
    ]
    write_json(file, entries)


def data_uri(image: np.ndarray) -> str:
    """[px, px, 3] uint8 as a PNG of at most GALLERY_PX a side."""
    buffer, picture = io.BytesIO(), Image.fromarray(image)
    picture.thumbnail((GALLERY_PX, GALLERY_PX), Image.Resampling.LANCZOS)
    picture.save(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_grid(file: Path, captions: Sequence[str], pairs: Sequence[Pair]) -> None:
    """The first GRID_PAIRS in rows of GRID_COLUMNS: generated on the left, real on the right, the caption beneath."""
    cells = [draw_pair(caption, pair) for caption, pair in zip(captions[:GRID_PAIRS], pairs[:GRID_PAIRS], strict=True)]
    columns, rows = min(GRID_COLUMNS, len(cells)), -(-len(cells) // GRID_COLUMNS)
    width, height = (side + 2 * GAP_PX for side in cells[0].size)
    page = Image.new("RGB", (columns * width, rows * height + FONT_PX + GAP_PX), "white")
    legend = "left: generated, right: real image with that caption"
    ImageDraw.Draw(page).text((GAP_PX, GAP_PX // 2), legend, "gray", ImageFont.load_default(FONT_PX))
    for i, cell in enumerate(cells):
        page.paste(cell, (GAP_PX + i % columns * width, 2 * GAP_PX + FONT_PX + i // columns * height))
    with atomic(file) as temporary:
        page.save(temporary, format="png")


def draw_pair(caption: str, pair: Pair) -> Image.Image:
    """Two images of TILE_PX side by side and the caption, which is cut where the cell ends."""
    font = ImageFont.load_default(FONT_PX)
    cell = Image.new("RGB", (2 * TILE_PX + GAP_PX, TILE_PX + GAP_PX // 2 + TEXT_LINES * (FONT_PX + 3)), "white")
    for k, image in enumerate(pair):
        # Small pixels stay visible as such, large images are averaged down.
        kernel = Image.Resampling.NEAREST if len(image) < TILE_PX else Image.Resampling.LANCZOS
        cell.paste(Image.fromarray(image).resize((TILE_PX, TILE_PX), kernel), (k * (TILE_PX + GAP_PX), 0))
    letters = int(cell.width / font.getlength("x"))
    lines = textwrap.wrap(caption, letters, max_lines=TEXT_LINES, placeholder=" …")
    ImageDraw.Draw(cell).multiline_text((0, TILE_PX + GAP_PX // 2), "\n".join(lines), "black", font, spacing=3)
    return cell
