"""Pictures of a list of prompts, and what draws them: the evaluation, or several jobs that share the work."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from pipeline.evaluate.sample import WHOLE, Images, Maker, Part, Sampler
from pipeline.model import MicroDiT
from pipeline.trained import Trained


class Drawing(NamedTuple):
    """A picture of each of `texts`, in the sub-folder `name`.

    `step`: what the evaluation needs them for, a key of its seconds; `purpose` is that of their noise; `trained`: by the
    trained model, or by the same network as it was before any training.
    """

    name: str
    step: str
    purpose: str
    texts: list[str]
    trained: bool = True

    def images(self, folder: Path) -> Images:
        """Where they lie, or will."""
        return Images(folder / self.name, len(self.texts))


@dataclass(frozen=True)
class Studio:
    """Draws with one model into sub-folders of `folder`, `batch` pictures at a time. `seed` is that of the untrained one."""

    sampler: Sampler
    trained: Trained
    seed: int
    batch: int
    folder: Path

    def draw(self, drawing: Drawing, part: Part = WHOLE) -> int:
        """Make what is not there yet of a job's part. Returns how many pictures that were."""
        maker = cache(lambda: self._maker(drawing))  # a network is loaded only if there is anything to draw
        what = f"sampling {drawing.name}" + (f", part {part.number} of {part.of}" if part.of > 1 else "")
        return drawing.images(self.folder).complete(lambda indices: maker()(indices), self.batch, what, part)

    def shares(self, drawings: Iterable[Drawing], part: Part) -> Iterator[tuple[Drawing, Part]]:
        """Each with the job's part of it. Batches are dealt out on and on, or all short lists would fall to the first job."""
        for drawing in drawings:
            yield drawing, part
            part = part.after(len(drawing.images(self.folder).batches(self.batch)))

    def _maker(self, drawing: Drawing) -> Maker:
        network = self._network if drawing.trained else self.trained.untrained(self.seed)
        return replace(self.sampler, purpose=drawing.purpose).maker(network, drawing.texts)

    @cached_property
    def _network(self) -> MicroDiT:
        return self.trained.network()
