"""Draws what the page orders. A model is loaded when it is first asked for, and then kept."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL.Image import Image

from pipeline.errors import UserError
from pipeline.serve.models import Stage, describe, finished_stages, load_final, load_stage
from pipeline.serve.order import MAX_PICTURES, Order

if TYPE_CHECKING:
    from pipeline.export.generate import Artist

FINAL = "final model"


class Drawn(NamedTuple):
    """The pictures that one model drew."""

    model: str
    px: int
    pictures: list[Image]
    seconds: float  # of drawing alone, without loading


class Studio:
    """The final model of the folder `model`, and the stages of `results`/train."""

    def __init__(self, model: Path, results: Path, device: str) -> None:
        """Loads nothing. Raises: UserError if there is no model."""
        self.model, self._results, self._device = model, results, device
        self.about = describe(model)
        self._artists: dict[str, Artist] = {}

    def stages(self) -> list[Stage]:
        """Stages to compare with: all but the one that the final model is. Looked up anew, as training may go on.

        Raises: UserError naming a summary that is none.
        """
        trained = self.about["trained"]
        final = trained["fingerprint"] if trained.get("weights") == "ema" else None  # others are not those of any stage
        return [stage for stage in finished_stages(self._results) if stage.fingerprint != final]

    def load(self, name: str) -> "Artist":
        """The final model, or a stage. Raises: UserError naming the file that is missing or does not fit."""
        if name not in self._artists:
            self._artists[name] = load_final(self.model, self._device) if name == FINAL else self._stage(name)
        return self._artists[name]

    def _stage(self, name: str) -> "Artist":
        for stage in self.stages():
            if stage.name == name:
                return load_stage(stage, self.load(FINAL), self.about["frozen"])
        raise UserError(f"The stage {name} is not there any more: load the page again.")

    def draw(self, order: Order, name: str) -> Drawn:
        """The pictures that `generate` draws with the same settings. Raises: as `load`."""
        from pipeline.export.generate import Drawing

        artist = self.load(name)
        start = time.perf_counter()
        drawings = [Drawing(number, order.prompt) for number in range(order.count)]
        drawn = artist.draw(drawings, MAX_PICTURES, order.seed, order.steps, order.guidance)
        pictures = [picture for _, picture in drawn]
        return Drawn(name, artist.px, pictures, time.perf_counter() - start)
