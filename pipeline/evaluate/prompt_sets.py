"""Prompts of others, such as PartiPrompts and DrawBench, drawn as one page of pictures a set: to look at, not to score."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.artifacts import atomic
from pipeline.config.evaluation import Evaluation
from pipeline.download.files import Files
from pipeline.evaluate.drawing import Drawing
from pipeline.evaluate.gallery import FONT_PX, GAP_PX
from pipeline.evaluate.prompt_files import Named, fetch, read_named, spread
from pipeline.fingerprint import digest

COLUMNS, TILE_PX, TEXT_LINES = 8, 192, 5
TEXT_PX = (TEXT_LINES + 1) * (FONT_PX + 3)  # below a picture: the category and the prompt


@dataclass(frozen=True)
class PromptSet:
    """A set by its name in the configuration, and the prompts of it that are drawn."""

    name: str
    rows: list[Named]

    @classmethod
    def load(cls, evaluation: Evaluation, files: Files) -> list["PromptSet"]:
        """All that are configured. Raises: UserError for a file that cannot be had or read."""
        return [cls(name, _chosen(name, reference, evaluation, files)) for name, reference in evaluation.prompt_sets.items()]

    @property
    def drawing(self) -> Drawing:
        """The pictures: a folder of their own for every list of prompts."""
        texts = [row.text for row in self.rows]
        return Drawing(f"{self.name}-{digest(texts)}", "prompt_sets", f"prompts {self.name}", texts)

    def write(self, images: Sequence[np.ndarray], out: Path) -> None:
        """The page `out`, a PNG, of the drawn `images`."""
        write_page(out, self.rows, images)


def _chosen(name: str, reference: str, evaluation: Evaluation, files: Files) -> list[Named]:
    key = f"evaluation.prompt_sets.{name}"
    rows = read_named(fetch(key, reference, files), f"{key}: {reference}")
    return [rows[i] for i in spread([row.category for row in rows], evaluation.prompts_a_set)]


def write_page(file: Path, rows: Sequence[Named], images: Sequence[np.ndarray]) -> None:
    """Pictures [px, px, 3] uint8 in rows of COLUMNS, with category and prompt below, cut where the cell ends."""
    columns = min(COLUMNS, len(rows))
    width, height = TILE_PX + GAP_PX, TILE_PX + TEXT_PX + GAP_PX
    page = Image.new("RGB", (columns * width + GAP_PX, math.ceil(len(rows) / columns) * height + GAP_PX), "white")
    for i, row in enumerate(rows):
        page.paste(draw_cell(row, images[i]), (GAP_PX + i % columns * width, GAP_PX + i // columns * height))
    with atomic(file) as temporary:
        page.save(temporary, format="png")


def draw_cell(row: Named, picture: np.ndarray) -> Image.Image:
    """One picture with its text, TILE_PX wide."""
    font = ImageFont.load_default(FONT_PX)
    cell = Image.new("RGB", (TILE_PX, TILE_PX + TEXT_PX), "white")
    # Small pixels stay visible as such, large images are averaged down.
    kernel = Image.Resampling.NEAREST if len(picture) < TILE_PX else Image.Resampling.LANCZOS
    cell.paste(Image.fromarray(picture).resize((TILE_PX, TILE_PX), kernel))
    letters = int(TILE_PX / font.getlength("x"))
    pen, top = ImageDraw.Draw(cell), TILE_PX + GAP_PX // 2
    if row.category:
        pen.text((0, top), textwrap.shorten(row.category, letters, placeholder=" …"), "gray", font)
        top += FONT_PX + 3
    lines = textwrap.wrap(row.text, letters, max_lines=TEXT_LINES, placeholder=" …")
    pen.multiline_text((0, top), "\n".join(lines), "black", font, spacing=3)
    return cell
