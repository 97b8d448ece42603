"""What all preference scores have in common: loaded by name before anything is drawn, a mean with its error in the card."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pipeline.config.evaluation import Evaluation
from pipeline.evaluate.preference.hpsv2 import HpsV2
from pipeline.evaluate.preference.imagereward import ImageReward
from pipeline.evaluate.preference.pickscore import PickScore
from pipeline.evaluate.sample import Images
from pipeline.frozen.clip import Clip
from pipeline.runtime import progress


class Preference(Protocol):
    """`identity` says what model it is."""

    identity: dict[str, Any]

    def scores(self, files: Sequence[Path], captions: Sequence[str]) -> list[float]:
        """Of pictures, each with its caption. Higher is better; the scale is the model's own."""
        ...


def load(evaluation: Evaluation, clips: Callable[[str], Clip], device: torch.device) -> dict[str, Preference]:
    """The configured scores by name. Raises: UserError that says what to install, or what a model lacks."""
    makers: dict[str, Callable[[], Preference]] = {
        "pickscore": lambda: PickScore(evaluation.pickscore, clips(evaluation.pickscore)),
        "hpsv2": lambda: HpsV2(device),
        "imagereward": lambda: ImageReward(device),
    }
    return {name: makers[name]() for name in evaluation.preference}


def measure(preference: Preference, samples: Images, captions: Sequence[str], batch: int, what: str) -> dict[str, Any]:
    """For the card: the mean over all samples, its standard error, how many there were, and the model."""
    found: list[float] = []
    with progress(what, len(samples)) as bar:
        for start in range(0, len(samples), batch):
            texts = captions[start : min(start + batch, len(samples))]
            found += preference.scores([samples.file(start + i) for i in range(len(texts))], texts)
            bar.update(len(texts))
    error = float(np.std(found, ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else None
    return {"mean": float(np.mean(found)), "std_error": error, "images": len(found), "model": preference.identity}
