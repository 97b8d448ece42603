"""What an evaluation card says besides the scores: what made them, and what they may be compared with."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from pipeline.config.evaluation import Evaluation
from pipeline.metrics.features import FeatureNetwork

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "clean-fid", "numpy", "scipy", "pillow")
PUBLISHED_IMAGES, PUBLISHED_PX, PUBLISHED_RESIZE, PUBLISHED_SAMPLER = 30_000, 512, "clean", ("heun", 30)
# Of the 30,000 image ids of COCO 2014 val in the prompt list that zero-shot FID-30K is published on, ascending, without
# leading zeros, one a line.
PUBLISHED_IDS_SHA256 = "b3205729e4b7ff02d84a41861e4c79f1d3737a0cc34388fac9eb45401136df94"


def other_models(evaluation: Evaluation) -> dict[str, str | None]:
    """References of the models behind further distances, by the distance's key in the card."""
    return {"clip_fid": evaluation.clip_fid, "cmmd": evaluation.cmmd, "fd_dino": evaluation.dino}


def why_not_comparable(evaluation: Evaluation, images: int, ids_sha256: str, px: int) -> list[str]:
    """What keeps the FID from being comparable with the published zero-shot FID-30K on COCO 2014; empty: nothing does.
    Guidance is free: it is a part of the model that is compared."""
    reasons, sampler = [], evaluation.sampler
    if evaluation.features != "inception":
        reasons.append(f"the features are of {evaluation.features}, not of Inception")
    if evaluation.resize != PUBLISHED_RESIZE:
        reasons.append(f"resized in mode {evaluation.resize}, not {PUBLISHED_RESIZE}")
    if px != PUBLISHED_PX:
        reasons.append(f"images of {px} px, not {PUBLISHED_PX}")
    if (sampler.name, evaluation.steps) != PUBLISHED_SAMPLER:
        reasons.append("drawn by {} in {} steps, not by {} in {}".format(sampler.name, evaluation.steps, *PUBLISHED_SAMPLER))
    if sampler.interval:
        reasons.append("guided at some noise levels only")
    if images != PUBLISHED_IMAGES:
        reasons.append(f"{images:,} images, not {PUBLISHED_IMAGES:,}")
    if ids_sha256 != PUBLISHED_IDS_SHA256:
        reasons.append("the image ids are not the published 30,000 of COCO 2014 val")
    return reasons


def warnings_for(network: FeatureNetwork, images: int, weights: str) -> list[str]:
    """What a reader of the FID must know."""
    found = []
    if images < 2 * network.width:
        found.append(
            f"{images:,} images for {network.width:,} features: below twice the width the FID is biased far upwards; "
            "read it beside the floor, or trust the KID"
        )
    if weights == "best":
        found.append("the weights were chosen by their FID for captions of this same set, which flatters them a little")
    return found


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


class Clock:
    """Seconds of the parts of a process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = round(self.seconds.get(part, 0.0) + time.perf_counter() - started, 2)
