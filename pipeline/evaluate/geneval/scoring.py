"""When a picture shows what its prompt asks for, decided from detected objects alone (GenEval, arXiv 2310.11513, section 3).

Boxes are (left, top, right, bottom) in pixels, y grows downwards. A class keeps its MAX_OBJECTS surest detections above
the threshold. Of these the surest, as many as are asked for, are looked at for colour and place.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluate.geneval.prompts import Prompt, Requirement

MAX_OBJECTS = 16
POSITION_MARGIN = 0.1  # of the sides of both boxes, by which centres must lie apart to be beside each other
DIRECTION = 0.5  # share of the distance that must lie in a direction; diagonal places count for both
NO_DISTANCE = 1e-3  # pixels

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """An object in a picture. `mask` [H, W] bool where the detector draws one, `colour` where it reads it itself."""

    name: str
    score: float
    box: Box
    mask: np.ndarray | None = None
    colour: str | None = None


Colours = Callable[[Sequence[Detection]], list[str]]  # the colour of each of some objects of one class


def surest(found: Sequence[Detection], threshold: float, overlap: float = 1.0) -> dict[str, list[Detection]]:
    """Detections above the threshold by class, surest first; with `overlap` below 1 also without those that cover a surer
    one of their class by so much (intersection over union)."""
    classes: dict[str, list[Detection]] = {}
    for one in sorted((one for one in found if one.score > threshold), key=lambda one: (-one.score, one.box, one.colour or "")):
        classes.setdefault(one.name, []).append(one)
    return {name: _apart(group[:MAX_OBJECTS], overlap) for name, group in classes.items()}


def _apart(group: list[Detection], overlap: float) -> list[Detection]:
    kept: list[Detection] = []
    for one in group:
        if overlap >= 1 or all(intersection_over_union(one.box, other.box) < overlap for other in kept):
            kept.append(one)
    return kept


def intersection_over_union(a: Box, b: Box) -> float:
    """Of two boxes, in [0, 1]."""
    shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    whole = _area(a) + _area(b) - shared
    return shared / whole if whole else 0.0


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def relations(box: Box, target: Box) -> set[str]:
    """Where `box` lies as seen from `target`: left of, right of, above, below; none or two of them for some places."""
    first, second = (np.asarray(b, dtype=float).reshape(2, 2) for b in (box, target))  # rows: top left, bottom right
    offset = first.mean(0) - second.mean(0)
    sides = np.abs(first[1] - first[0]) + np.abs(second[1] - second[0])
    apart = np.sign(offset) * np.maximum(np.abs(offset) - POSITION_MARGIN * sides, 0)
    if np.all(np.abs(apart) < NO_DISTANCE):
        return set()
    x, y = apart / np.linalg.norm(offset)
    places = {"left of": -x, "right of": x, "above": -y, "below": y}
    return {name for name, share in places.items() if share > DIRECTION}


def judge(prompt: Prompt, found: dict[str, list[Detection]], colours: Colours) -> list[str]:
    """Why a picture does not show its prompt; empty: it does. `found` is what `surest` gives."""
    reasons: list[str] = []
    matched: list[list[Detection] | None] = []  # objects of each requirement, None where it is not met
    for wanted in prompt.include:
        objects = found.get(wanted.name, [])[: wanted.count]
        wrong = _count(wanted, objects) or _colour(wanted, objects, colours) or _place(wanted, objects, matched)
        matched.append(None if wrong else objects)
        reasons += [wrong] if wrong else []
    for unwanted in prompt.exclude:
        number = len(found.get(unwanted.name, []))
        if number >= unwanted.count:
            reasons.append(f"fewer than {unwanted.count} {unwanted.name} wanted, {number} found")
    return reasons


def _count(wanted: Requirement, objects: list[Detection]) -> str | None:
    if len(objects) >= wanted.count:
        return None
    return f"{wanted.count} {wanted.name} wanted, {len(objects) or 'none'} found"


def _colour(wanted: Requirement, objects: list[Detection], colours: Colours) -> str | None:
    if wanted.color is None:
        return None
    seen = Counter(colours(objects))
    if seen[wanted.color] >= wanted.count:
        return None
    return f"{wanted.count} {wanted.color} {wanted.name} wanted, {', '.join(f'{n} {c}' for c, n in sorted(seen.items()))} found"


def _place(wanted: Requirement, objects: list[Detection], matched: list[list[Detection] | None]) -> str | None:
    """Every object must stand in the relation to every object of the target."""
    if wanted.position is None:
        return None
    relation, target = wanted.position
    if (others := matched[target]) is None:
        return f"{wanted.name} {relation} another object wanted, which was not found"
    for one in objects:
        for other in others:
            if relation not in (places := relations(one.box, other.box)):
                return f"{wanted.name} {relation} {other.name} wanted, {' and '.join(sorted(places)) or 'neither side'} found"
    return None
