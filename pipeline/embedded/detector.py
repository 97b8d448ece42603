"""Reads the attributes of a scene off its pixels: background, and colour, shape, size and position of objects.

Made for pictures from a decoder: it looks at soft coverage instead of hard edges, so blur costs little. A shape is
recognised by drawing every candidate with the area and the centre found in the picture and comparing coverage.
"""

from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from pipeline.embedded.scenes import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, SUPERSAMPLING, draw_shape

OBJECT_ATTRIBUTES = ("colour", "shape", "size", "position")
MAX_OBJECTS = 2

# Below half the smallest distance between any object and any background, above the noise of a decoder.
CONTRAST = 36.0
# A small cross covers 3.8 % of the image; anything under a third of that is a smudge.
SMALLEST_SHARE = 0.012
# The geometric mean of the two radii separates them at equal relative error.
LARGE_RADIUS = float(np.sqrt(SIZES["small"] * SIZES["large"]))


def detect(image: np.ndarray, max_objects: int = MAX_OBJECTS) -> dict[str, Any]:
    """Attributes of an image [H, W, 3] (square, values 0-255): {"background": ..., "objects": [...]}.

    Objects come largest first, at most `max_objects`, each with the keys colour, shape, size, position, and box: left,
    top, right and bottom in pixels.
    """
    image = np.asarray(image, dtype=np.float32)
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1]:
        raise ValueError(f"the detector reads square images [H, W, 3], not {list(image.shape)}")
    ground = _background_rgb(image)
    distance = np.linalg.norm(image - ground, axis=2)
    objects = [_read_object(image, ground, distance, part) for part in _parts(distance > CONTRAST, max_objects)]
    return {"background": _nearest(ground, BACKGROUNDS), "objects": objects}


def _background_rgb(image: np.ndarray) -> np.ndarray:
    """The median of the border [3]: no object covers half of it."""
    width = max(1, image.shape[0] // 32)
    ring = np.ones(image.shape[:2], dtype=bool)
    ring[width:-width, width:-width] = False
    return np.median(image[ring], axis=0)


def _parts(mask: np.ndarray, count: int) -> list[np.ndarray]:
    """Masks [H, W] of the `count` largest connected parts, largest first."""
    labels, found = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=found + 1)[1:]
    largest = np.argsort(-areas, kind="stable")[:count]
    return [labels == k + 1 for k in largest if areas[k] >= SMALLEST_SHARE * mask.size]


def _read_object(image: np.ndarray, ground: np.ndarray, distance: np.ndarray, part: np.ndarray) -> dict[str, Any]:
    rgb = _core_rgb(image, distance, part)
    coverage = _coverage(image, ground, rgb, part)
    shape, (x, y), radius = _fit(coverage)
    return {
        "colour": _nearest(rgb, COLOURS),
        "shape": shape,
        "size": "large" if radius > LARGE_RADIUS else "small",
        "position": _nearest(np.array([x, y]), POSITIONS),
        "box": box_of(part),
    }


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The smallest box that holds a mask [H, W] of at least one pixel: left, top, right, bottom."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _core_rgb(image: np.ndarray, distance: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Median colour [3] of the part away from its outline, where it mixes with the background."""
    depth = ndimage.distance_transform_edt(part)
    core = part & (depth >= np.quantile(depth[part], 0.5))
    return np.median(image[core], axis=0)


def _coverage(image: np.ndarray, ground: np.ndarray, rgb: np.ndarray, part: np.ndarray) -> np.ndarray:
    """How much of each pixel [H, W] the object covers, in [0, 1]."""
    toward = rgb - ground
    share = (image - ground) @ toward / max(float(toward @ toward), 1.0)
    near = ndimage.binary_dilation(part, iterations=2)
    return np.where(near, np.clip(share, 0, 1), 0)


def _fit(coverage: np.ndarray) -> tuple[str, tuple[float, float], float]:
    """The best shape, its centre and its radius (fractions of the side) for a coverage map [H, W]."""
    px = coverage.shape[0]
    area = float(coverage.sum())
    y, x = (float(v) + 0.5 for v in ndimage.center_of_mass(coverage))
    smooth = ndimage.gaussian_filter(coverage, px / 64)
    best = None
    for shape in SHAPES:
        unit_area, drop = _UNITS[shape]
        radius = np.sqrt(area / unit_area)
        centre = (x, y - drop * radius)
        drawn = ndimage.gaussian_filter(draw_coverage(shape, centre, radius, px), px / 64)
        error = float(np.square(drawn - smooth).sum())
        if best is None or error < best[0]:
            best = (error, shape, centre, radius)
    _, shape, centre, radius = best
    return shape, (centre[0] / px, centre[1] / px), radius / px


def draw_coverage(shape: str, centre: tuple[float, float], radius: float, px: int) -> np.ndarray:
    """Coverage [px, px] in [0, 1] of a shape; centre (x, y) and radius in pixels."""
    canvas = Image.new("L", (px * SUPERSAMPLING, px * SUPERSAMPLING))
    scaled = (centre[0] * SUPERSAMPLING, centre[1] * SUPERSAMPLING)
    draw_shape(ImageDraw.Draw(canvas), shape, scaled, radius * SUPERSAMPLING, 255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255


def _unit(shape: str) -> tuple[float, float]:
    """Area of a shape of radius 1 and how far below its centre its centre of mass lies."""
    px, radius = 64, 24.0
    coverage = draw_coverage(shape, (32.0, 32.0), radius, px)
    return float(coverage.sum()) / radius**2, (ndimage.center_of_mass(coverage)[0] + 0.5 - 32) / radius


_UNITS = {shape: _unit(shape) for shape in SHAPES}


def _nearest(value: np.ndarray, named: dict[str, Sequence[float]]) -> str:
    """The name whose value is nearest."""
    return min(named, key=lambda name: float(np.square(np.asarray(named[name]) - value).sum()))


def score(images: Iterable[np.ndarray], attributes: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Accuracies of images [H, W, 3] (0-255) against the attributes they should show.

    Returns {"one_object": {...}, "two_objects": {...}} (a group without images is left out), each with the number
    of images, the means of what `compare` gives, and "all": the share of images with every attribute right.
    """
    groups: dict[str, list[dict[str, float]]] = {}
    for image, expected in zip(images, attributes, strict=True):
        group = "one_object" if len(expected["objects"]) == 1 else "two_objects"
        groups.setdefault(group, []).append(compare(detect(image), expected))
    return {group: _means(rows) for group, rows in sorted(groups.items())}


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {"images": len(rows), **{key: float(np.mean([row[key] for row in rows])) for key in rows[0]}}


def compare(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Shares in [0, 1] of the expected attributes that were found, for one image.

    Colour, shape, size, position: by expected object; one that is missing is wrong in everything. Of the found
    objects only the largest count, as many as expected, paired in the way that agrees best. Background; number:
    whether the number of objects is right; all: whether everything is.
    """
    wanted = expected["objects"]
    slots = (found["objects"] + [{}] * len(wanted))[: len(wanted)]
    pairings = ([_agreement(f, w) for f, w in zip(p, wanted, strict=True)] for p in permutations(slots))
    shares = dict(zip(OBJECT_ATTRIBUTES, np.mean(max(pairings, key=np.sum), axis=0).tolist(), strict=True))
    shares["background"] = float(found["background"] == expected["background"])
    shares["number"] = float(len(found["objects"]) == len(wanted))
    return {**shares, "all": float(min(shares.values()) == 1)}


def _agreement(found: dict[str, str], wanted: dict[str, Any]) -> list[float]:
    return [float(found.get(key) == wanted[key]) for key in OBJECT_ATTRIBUTES]
