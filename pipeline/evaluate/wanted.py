"""What an evaluation draws, by its configuration. What looks at the pictures is no part of it."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.config.evaluation import Evaluation
from pipeline.download.files import Files
from pipeline.evaluate.drawing import Drawing
from pipeline.evaluate.geneval.asked import Asked
from pipeline.evaluate.prompt_sets import PromptSet
from pipeline.reals import Real


class Wanted(NamedTuple):
    """Pictures of the evaluation set's captions, the first of them by the untrained model too, and of other prompts."""

    captions: Drawing
    untrained: Drawing
    geneval: Asked | None
    prompt_sets: list[PromptSet]

    @classmethod
    def load(cls, evaluation: Evaluation, chosen: Sequence[Real], files: Files) -> "Wanted":
        """`chosen` have the captions. Raises: UserError for a file of prompts that cannot be had or read."""
        texts = [real.caption or "" for real in chosen]
        return cls(
            Drawing("samples", "sampling", "evaluation", texts),
            Drawing("untrained", "untrained", "evaluation", texts[: evaluation.untrained_images], trained=False),
            evaluation.geneval and Asked.load(evaluation.geneval, files),
            PromptSet.load(evaluation, files),
        )

    @property
    def drawings(self) -> list[Drawing]:
        """All that are not empty, those of the untrained model last."""
        others = [*([self.geneval.drawing] if self.geneval else []), *(one.drawing for one in self.prompt_sets)]
        return [drawing for drawing in (self.captions, *others, self.untrained) if drawing.texts]
