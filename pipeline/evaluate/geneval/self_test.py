"""What a detector finds on real images whose objects are known: a score says nothing where the detector itself is blind."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.evaluate.geneval.prompts import COLORS
from pipeline.evaluate.geneval.scoring import Detection
from pipeline.evaluate.geneval.words import class_of, named_in
from pipeline.reals import Real

IMAGES = 256  # at most
Kind = tuple[str, str | None]  # class and colour, None where it is not known

Find = Callable[[np.ndarray], list[Detection]]  # objects of an image [H, W, 3] uint8
Colours = Callable[[np.ndarray, Sequence[Detection]], list[str]]


class Known(NamedTuple):
    """A real image, and of each object that it is known to show the class and, maybe, the colour."""

    real: Real
    objects: list[Kind]


def known_objects(reals: Sequence[Real], names: frozenset[str]) -> tuple[str, list[Known]]:
    """Where the knowledge is from, `attributes` or `captions`, and the first IMAGES that name a class of `names`.

    Attributes list their objects with a class (of drawn scenes: a shape) and maybe a color. A caption names classes.
    """
    source = "attributes" if any(real.attributes for real in reals) else "captions"
    read = _of_attributes if source == "attributes" else _of_caption
    known = (Known(real, [one for one in read(real) if one[0] in names]) for real in reals)
    return source, [one for one in known if one.objects][:IMAGES]


def _of_attributes(real: Real) -> list[Kind]:
    objects = real.attributes.get("objects") if isinstance(real.attributes, dict) else None
    return [
        (class_of(name), colour if (colour := one.get("color", one.get("colour"))) in COLORS else None)
        for one in (objects if isinstance(objects, list) else [])
        if isinstance(one, dict) and isinstance(name := one.get("class", one.get("shape")), str)
    ]


def _of_caption(real: Real) -> list[Kind]:
    return [(name, None) for name in sorted(named_in(real.caption or ""))]


def self_test(source: str, known: Sequence[Known], px: int, find: Find, colours: Colours) -> dict[str, Any]:
    """Recall of the known objects, by class alone and, of those with a colour that were found, by class and colour too."""
    right, seen = Counter[str](), Counter[str]()
    for real, objects in known:
        image = real.pixels(px)
        found = find(image)
        named, wanted = Counter(one.name for one in found), Counter(name for name, _ in objects)
        right["class"] += (named & wanted).total()
        seen["class"] += wanted.total()
        coloured = Counter(kind for kind in objects if kind[1])
        if coloured:
            right["colour"] += (_kinds(image, found, {name for name, _ in coloured}, colours) & coloured).total()
            seen["colour"] += (named & Counter(name for name, _ in coloured.elements())).total()
    return {
        "source": source,
        "images": len(known),
        "objects": seen["class"],
        "recall": right["class"] / seen["class"] if seen["class"] else None,
        "colour_accuracy": right["colour"] / seen["colour"] if seen["colour"] else None,
    }


def _kinds(image: np.ndarray, found: list[Detection], names: set[str], colours: Colours) -> Counter[Kind]:
    groups = [[one for one in found if one.name == name] for name in sorted(names)]
    return Counter((group[0].name, colour) for group in groups if group for colour in colours(image, group))
