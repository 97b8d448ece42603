"""What the configuration may ask for beside the scores of the captions' samples: GenEval, pages of other prompts, and
preference scores. Models are loaded before anything is drawn, so that a mistake shows at once."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.config.evaluation import Evaluation
from pipeline.evaluate.card import Clock
from pipeline.evaluate.drawing import Drawing
from pipeline.evaluate.geneval.benchmark import Benchmark
from pipeline.evaluate.preference import scores as preference
from pipeline.evaluate.prompt_sets import PromptSet
from pipeline.evaluate.wanted import Wanted
from pipeline.frozen.clip import Clip, load_clip
from pipeline.reals import Real


class Pictures(NamedTuple):
    """What was drawn, `px` pixels a side, below `folder`; those with captions of the evaluation set among them."""

    folder: Path
    captions: Drawing
    px: int


class Extras(NamedTuple):
    """What is asked for; None or empty where it is not."""

    geneval: Benchmark | None
    prompt_sets: list[PromptSet]
    preferences: dict[str, preference.Preference]

    @classmethod
    def load(cls, evaluation: Evaluation, wanted: Wanted, clip: Clip, device: torch.device) -> "Extras":
        """`clip` is that of evaluation.clip_score. Raises: UserError for a model that cannot be had, or does not fit."""
        clips = cache(lambda ref: clip if ref == evaluation.clip_score else load_clip(ref, device))
        geneval = wanted.geneval and Benchmark.load(evaluation, wanted.geneval, clips, device)
        return cls(geneval, wanted.prompt_sets, preference.load(evaluation, clips, device))

    def run(self, made: Pictures, reals: Sequence[Real], batch: int, out: Path, clock: Clock) -> dict[str, Any]:
        """Judge what was drawn, with the captions of `reals` and with other prompts; write `out`/geneval.json and
        `out`/prompts/NAME.png. Returns metrics for the card."""
        metrics: dict[str, Any] = {}
        if self.geneval:
            with clock("geneval"):
                pictures = self.geneval.asked.drawing.images(made.folder)
                metrics["geneval"] = self.geneval.run(pictures, reals, made.px, out / "geneval.json")
        for one in self.prompt_sets:
            with clock("prompt_sets"):
                one.write(one.drawing.images(made.folder), out / "prompts" / f"{one.name}.png")
        if self.preferences:
            with clock("preference"):
                texts, samples = made.captions.texts, made.captions.images(made.folder)
                metrics["preference"] = {
                    name: preference.measure(one, samples, texts, batch, name) for name, one in self.preferences.items()
                }
        return metrics
