"""The benchmark: pictures of the prompts, what a detector finds on them, and the share that shows what was asked for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.artifacts import write_json
from pipeline.config.evaluation import Evaluation
from pipeline.evaluate.card import Clock
from pipeline.evaluate.gallery import data_uri
from pipeline.evaluate.geneval import scenes
from pipeline.evaluate.geneval.asked import Asked
from pipeline.evaluate.geneval.colours import ClipColours, colours_read
from pipeline.evaluate.geneval.detectors import Detector, load_detector
from pipeline.evaluate.geneval.prompts import TASKS, Prompt
from pipeline.evaluate.geneval.scoring import MAX_OBJECTS, POSITION_MARGIN, Detection, judge, surest
from pipeline.evaluate.geneval.self_test import known_objects, self_test
from pipeline.evaluate.prompt_files import spread
from pipeline.frozen.clip import Clip
from pipeline.frozen.models import identity
from pipeline.reals import Real
from pipeline.runtime import progress

FAILURES = 24  # shown
DETECTOR_BATCH = 8  # images; the masks of a batch of Mask2Former take 60 MB an image


class Verdict(NamedTuple):
    """Why the image does not show its prompt; no reasons: it does."""

    image: int
    prompt: Prompt
    reasons: list[str]


@dataclass(frozen=True)
class Benchmark:
    """Everything that is needed besides the model; `clip` is the identity of what names colours, None: the detector does."""

    asked: Asked
    detector: Detector
    colours: Callable[[np.ndarray, Sequence[Detection]], list[str]]
    clip: dict[str, Any] | None

    @classmethod
    def load(cls, evaluation: Evaluation, asked: Asked, clips: Callable[[str], Clip], device: torch.device) -> "Benchmark":
        """Raises: UserError for a detector that does not fit the prompts."""
        config = asked.config
        detector = load_detector(config.detector, asked.prompts.names, device)
        if config.detector == scenes.NAME:
            return cls(asked, detector, colours_read, None)
        ref = config.clip or evaluation.clip_score
        return cls(asked, detector, ClipColours(clips(ref)), identity(ref))

    def run(self, images: Sequence[np.ndarray], reals: Sequence[Real], px: int, out: Path) -> dict[str, Any]:
        """Judge the drawn `images` of `px` pixels and write `out`. Returns what the card says of it."""
        clock = Clock()
        with clock("detection"):
            verdicts = list(self.verdicts(images))
        with clock("self_test"):
            tested = self_test(*known_objects(reals, self.detector.names), px, self._find, self.colours)
        result = self.result(images, verdicts)
        facts = {"images_a_prompt": self.asked.config.images_a_prompt, "px": px, "seconds": clock.seconds}
        write_json(out, {**result, "self_test": tested, **facts, "failures": _failures(images, verdicts)})
        return {
            "score": result["score"],
            "tasks": {task: row["accuracy"] for task, row in result["tasks"].items()},
            "self_test": tested["recall"],
            **{name: result[name] for name in ("images", "prompts", "detector", "clip", "thresholds")},
        }

    def verdicts(self, images: Sequence[np.ndarray]) -> Iterator[Verdict]:
        """One an image."""
        rows, config = self.asked.of_images, self.asked.config
        least = min(config.detector_threshold, config.counting_threshold)
        with progress("GenEval", len(images)) as bar:
            for start in range(0, len(images), DETECTOR_BATCH):
                pixels = [images[i] for i in range(start, min(start + DETECTOR_BATCH, len(images)))]
                for i, (image, found) in enumerate(zip(pixels, self.detector.detect(pixels, least), strict=True), start):
                    yield Verdict(i, rows[i], self._judge(rows[i], image, found))
                bar.update(len(pixels))

    def _judge(self, prompt: Prompt, image: np.ndarray, found: list[Detection]) -> list[str]:
        counting = prompt.tag == "counting"
        config = self.asked.config
        threshold = config.counting_threshold if counting else config.detector_threshold
        return judge(prompt, surest(found, threshold, self.detector.overlap), partial(self.colours, image))

    def _find(self, image: np.ndarray) -> list[Detection]:
        threshold = self.asked.config.detector_threshold
        (found,) = self.detector.detect([image], threshold)
        kept = surest(found, threshold, self.detector.overlap)
        return [one for group in kept.values() for one in group]

    def result(self, images: Sequence[np.ndarray], verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """Scores and what made them. The score is the mean over the tasks, of however many prompts each has."""
        tasks = {task: _task([one for one in verdicts if one.prompt.tag == task]) for task in TASKS}
        tasks = {task: row for task, row in tasks.items() if row["images"]}
        asked, config = self.asked, self.asked.config
        return {
            "score": sum(row["accuracy"] for row in tasks.values()) / len(tasks),
            "tasks": tasks,
            "prompts": {"source": asked.prompts.source, "sha256": asked.prompts.sha256, "count": len(asked.rows),
                        "of": len(asked.prompts.rows)},
            "images": len(images),
            "detector": self.detector.identity,
            "clip": self.clip,
            "thresholds": {"detection": config.detector_threshold, "counting": config.counting_threshold,
                           "overlap": self.detector.overlap, "max_objects": MAX_OBJECTS, "position_margin": POSITION_MARGIN},
        }  # fmt: skip


def _task(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    right = sum(not one.reasons for one in verdicts)
    count = len(verdicts)
    return {
        "accuracy": right / count if count else None,
        "images": count,
        "prompts": len({id(one.prompt) for one in verdicts}),
    }


def _failures(images: Sequence[np.ndarray], verdicts: Sequence[Verdict]) -> list[dict[str, str]]:
    """Some wrong images of every task, in the order of the tasks."""
    wrong = [one for one in verdicts if one.reasons]
    shown = [wrong[i] for i in spread([one.prompt.tag for one in wrong], FAILURES)]
    return [
        {
            "task": one.prompt.tag,
            "prompt": one.prompt.prompt,
            "reason": "; ".join(one.reasons),
            "image": data_uri(images[one.image]),
        }
        for one in shown
    ]
