"""What the configuration may ask for beside the scores of the captions' samples: GenEval, pages of other prompts, and
preference scores. Files and models are loaded before anything is drawn, so that a mistake shows at once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.config.evaluation import Evaluation
from pipeline.config.steps import Settings
from pipeline.download.files import Files
from pipeline.evaluate.card import Clock
from pipeline.evaluate.geneval.benchmark import Benchmark
from pipeline.evaluate.preference import scores as preference
from pipeline.evaluate.prompt_sets import PromptSet
from pipeline.evaluate.sample import Images, Maker, Sampler
from pipeline.frozen.clip import Clip, load_clip
from pipeline.reals import Real
from pipeline.trained import Trained


class Studio(NamedTuple):
    """What draws pictures of `px` pixels, `batch` at a time, into sub-folders of `folder`."""

    sampler: Sampler
    trained: Trained
    px: int
    batch: int
    folder: Path

    def maker(self, purpose: str) -> Callable[[Sequence[str]], Maker]:
        """Pictures of prompts, with noise of their own for each purpose."""
        sampler, network = replace(self.sampler, purpose=purpose), cache(self.trained.network)
        return lambda texts: sampler.maker(network(), texts)


class Extras(NamedTuple):
    """What is asked for; None or empty where it is not."""

    geneval: Benchmark | None
    prompt_sets: list[PromptSet]
    preferences: dict[str, preference.Preference]

    @classmethod
    def load(cls, evaluation: Evaluation, settings: Settings, clip: Clip, device: torch.device, work: Path) -> "Extras":
        """`clip` is that of evaluation.clip_score; what is fetched goes to a folder of `work`.

        Raises: UserError for a file or a model that cannot be had, or that does not fit.
        """
        files = Files(work / "prompts", settings.runtime.downloads)
        clips = cache(lambda ref: clip if ref == evaluation.clip_score else load_clip(ref, device))
        geneval = evaluation.geneval and Benchmark.load(evaluation, evaluation.geneval, files, clips, device)
        return cls(geneval, PromptSet.load(evaluation, files), preference.load(evaluation, clips, device))

    def run(self, studio: Studio, samples: Images, reals: Sequence[Real], out: Path, clock: Clock) -> dict[str, Any]:
        """Write `out`/geneval.json and `out`/prompts/NAME.png. Returns metrics for the card; `samples` are those of the
        captions of `reals`."""
        metrics: dict[str, Any] = {}
        if self.geneval:
            with clock("geneval"):
                maker = studio.maker("geneval")(self.geneval.texts)
                metrics["geneval"] = self.geneval.run(maker, studio.batch, reals, studio.px, studio.folder, out / "geneval.json")
        for one in self.prompt_sets:
            with clock("prompt_sets"):
                one.draw(studio.maker(f"prompts {one.name}"), studio.batch, studio.folder, out / "prompts" / f"{one.name}.png")
        if self.preferences:
            captions = [real.caption or "" for real in reals]
            with clock("preference"):
                metrics["preference"] = {
                    name: preference.measure(one, samples, captions, studio.batch, name) for name, one in self.preferences.items()
                }
        return metrics
