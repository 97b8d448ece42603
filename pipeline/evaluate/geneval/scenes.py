"""GenEval for the drawn scenes: prompts in their captions' grammar, and their detector as one of GenEval's.

The classes are the shapes. Prompts are captions of held-out scenes, so they also name places and backgrounds; of these
only what a task asks for is looked at. Scenes have one or two objects, so numbers are one and two.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np

from pipeline.embedded import detector
from pipeline.embedded.scenes import POSITIONS, SHAPES, SceneObject, caption, draw_scene
from pipeline.evaluate.geneval.prompts import TASKS, Prompt, Prompts, Task
from pipeline.evaluate.geneval.scoring import Detection
from pipeline.fingerprint import canonical_json

NAME = "scenes"
PROMPTS_A_TASK = 40
SEED = 5310  # of the scenes whose captions are the prompts; those of the evaluation set have another
SEEN_OBJECTS = 4  # more than scenes have: a picture with too many objects must not pass for right


def scene_prompts() -> Prompts:
    """The same list every time: PROMPTS_A_TASK of each task, task by task."""
    rows = [row for task in TASKS for row in islice(_prompts(task), PROMPTS_A_TASK)]
    text = canonical_json([row.model_dump(by_alias=True, exclude_none=True) for row in rows])
    return Prompts(NAME, hashlib.sha256(text.encode()).hexdigest(), rows)


def _prompts(task: Task) -> Iterator[Prompt]:
    """Without end; a scene that does not suit the task is passed over."""
    two = task in ("two_object", "position", "color_attr")
    for i in count(TASKS.index(task), len(TASKS)):
        pair = two or (task == "counting" and i // len(TASKS) % 2 == 0)
        scene = draw_scene(SEED, "heldout", i, float(pair))
        if parts := _requirements(task, scene.objects):
            yield Prompt.model_validate({"tag": task, "prompt": caption(scene), **parts})


def _requirements(task: Task, objects: Sequence[SceneObject]) -> dict[str, Any] | None:
    """`include` and `exclude` of a prompt, None if the objects do not suit the task."""
    alike = len({one.shape for one in objects}) == 1
    if task == "counting":  # one object, or two of a shape
        shape, number = objects[0].shape, len(objects)
        counted = {"include": [{"class": shape, "count": number}], "exclude": [{"class": shape, "count": number + 1}]}
        return counted if alike else None
    if len(objects) == 2 and alike:
        return None
    coloured = task in ("colors", "color_attr")
    include = [{"class": one.shape, "count": 1} | ({"color": one.colour} if coloured else {}) for one in objects]
    if task == "position":
        if (relation := _relation(*objects)) is None:
            return None
        include[1]["position"] = [relation, 0]
    return {"include": include}


def _relation(target: SceneObject, other: SceneObject) -> str | None:
    """Where `other` is asked to lie as seen from `target`; None on a diagonal, where two words would be right."""
    (x0, y0), (x1, y1) = POSITIONS[target.position], POSITIONS[other.position]
    if x0 != x1 and y0 != y1:
        return None
    return ("right of" if x1 > x0 else "left of") if x0 != x1 else ("below" if y1 > y0 else "above")


class SceneDetector:
    """Reads shapes, colours and boxes off pixels, without a network. It has no confidences: what it finds is certain."""

    overlap = 1.0

    def __init__(self) -> None:
        self.identity = {"ref": NAME}
        self.names = frozenset(SHAPES)

    def detect(self, images: Sequence[np.ndarray], threshold: float) -> list[list[Detection]]:
        """Objects of square images [px, px, 3] uint8."""
        return [[_detection(one) for one in detector.detect(image, SEEN_OBJECTS)["objects"]] for image in images]


def _detection(found: dict[str, Any]) -> Detection:
    return Detection(found["shape"], 1.0, found["box"], colour=found["colour"])
