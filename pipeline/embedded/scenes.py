"""Synthetic scenes: one or two coloured shapes on a plain background, drawn by code, with captions.

A scene is a function of (seed, split, index). A fixed set of attribute combinations (colour, shape, position,
background) is held out: the split "train" never draws one, the split "heldout" draws nothing else, so a model
that draws held-out captions well has composed attributes it never saw together.

Lengths and coordinates are fractions of the image side, (0, 0) is the top left corner, colours are RGB 0-255.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

NATIVE_PX = 64

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (30, 150, 50),
    "blue": (35, 65, 225),
    "yellow": (250, 225, 35),
    "purple": (135, 30, 175),
    "orange": (250, 130, 15),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
# At least 75 away from every colour above and from each other, so that jitter never makes two of them meet.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "pink": (250, 140, 190),
    "gray": (130, 130, 130),
    "cyan": (95, 220, 230),
    "brown": (110, 65, 30),
    "beige": (225, 205, 150),
    "teal": (0, 95, 120),
}
# Centres sit in the middle of a quadrant (or of the image): cell borders of a 4x4 latent fall between objects.
POSITIONS: dict[str, tuple[float, float]] = {
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
    "center": (0.5, 0.5),
}
SIZES: dict[str, float] = {"small": 0.125, "large": 0.19}
SHAPES = ("circle", "square", "triangle", "cross")
SPLITS = ("train", "heldout")
HELDOUT_SHARE = 1 / 6

# Two-object scenes use the corners only: an object in the center would touch a large neighbour.
CORNERS = tuple(name for name in POSITIONS if name != "center")

COLOUR_JITTER = 8.0
POSITION_JITTER = 0.02
SIZE_JITTER = 0.05
SUPERSAMPLING = 4

# Outlines around (0, 0) for radius 1; the circle is drawn as an ellipse.
_ARM = 0.38
OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0.0, -1.05), (1.05, 0.8), (-1.05, 0.8)),
    "cross": (
        (-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM),
        (_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM),
    ),
}  # fmt: skip

# {o}: the objects, {b}: the background with its article ("a pink"), {g}: the bare name ("pink").
# The second entry words one object. Two large objects in the longest wording make 22 words, commas included.
WORDINGS: tuple[tuple[str, str], ...] = (
    ("{o} on {b} background", "{a} in the {p}"),
    ("{b} background with {o}", "{a} in the {p}"),
    ("{o}, the background is {g}", "{a} in the {p}"),
    ("on {b} background, {o}", "{a} in the {p}"),
    ("{o}, {g} background", "{n}, {p}"),
    ("a picture of {o} on {g}", "{a} in the {p}"),
    ("{o} on {b} background", "in the {p} {a}"),
    ("{o} against {b} backdrop", "{a} at the {p}"),
)


@dataclass(frozen=True)
class SceneObject:
    """One shape: its named attributes and the exact numbers they were jittered to."""

    colour: str
    shape: str
    size: str
    position: str
    rgb: tuple[float, float, float]
    centre: tuple[float, float]
    radius: float


@dataclass(frozen=True)
class Scene:
    """One or two objects on a background of one colour."""

    objects: tuple[SceneObject, ...]
    background: str
    background_rgb: tuple[float, float, float]

    def attributes(self) -> dict[str, Any]:
        """Everything about the scene as JSON-able values; `Scene.from_attributes` reads it back exactly."""
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_attributes(attributes: dict[str, Any]) -> "Scene":
        """The scene that `attributes` (from `Scene.attributes`) describes."""
        objects = tuple(SceneObject(**{**o, "rgb": tuple(o["rgb"]), "centre": tuple(o["centre"])}) for o in attributes["objects"])
        return Scene(objects, attributes["background"], tuple(attributes["background_rgb"]))


@cache
def is_held_out(colour: str, shape: str, position: str, background: str) -> bool:
    """Whether this combination belongs to the held-out set: the same answer for every seed and machine."""
    digest = hashlib.sha256(f"{colour}|{shape}|{position}|{background}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELDOUT_SHARE * 2**64


@cache
def combinations(split: str) -> tuple[tuple[str, str, str, str], ...]:
    """All (colour, shape, position, background) combinations that `split` may draw."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    everything = product(COLOURS, SHAPES, POSITIONS, BACKGROUNDS)
    return tuple(c for c in everything if is_held_out(*c) == (split == "heldout"))


def draw_scene(seed: int, split: str, index: int, two_object_share: float = 0.25) -> Scene:
    """The scene number `index` (>= 0) of a split; `two_object_share` in [0, 1] is the chance of two objects."""
    if not 0 <= two_object_share <= 1:
        raise ValueError(f"two_object_share must lie in [0, 1], not {two_object_share}")
    allowed = combinations(split)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    two = rng.random() < two_object_share
    first = _pick(rng, [c for c in allowed if c[2] != "center"] if two else allowed)
    names = [first]
    if two:
        names.append(_pick(rng, _partners(split, first)))
    objects = tuple(_jittered_object(rng, *name[:3]) for name in names)
    return Scene(objects, first[3], _jittered_rgb(rng, BACKGROUNDS[first[3]]))


@cache
def _partners(split: str, first: tuple[str, str, str, str]) -> list[tuple[str, str, str, str]]:
    """The second object's choices: the same background, another corner, another colour."""
    colour, _, position, background = first
    return [c for c in combinations(split) if c[3] == background and c[2] in CORNERS and c[2] != position and c[0] != colour]


def _pick(rng: np.random.Generator, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _jittered_rgb(rng: np.random.Generator, rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    moved = np.clip(np.asarray(rgb) + rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3), 0, 255)
    return tuple(round(float(v), 1) for v in moved)


def _jittered_object(rng: np.random.Generator, colour: str, shape: str, position: str) -> SceneObject:
    size = _pick(rng, tuple(SIZES))
    centre = np.asarray(POSITIONS[position]) + rng.uniform(-POSITION_JITTER, POSITION_JITTER, 2)
    radius = SIZES[size] * rng.uniform(1 - SIZE_JITTER, 1 + SIZE_JITTER)
    return SceneObject(
        colour, shape, size, position,
        rgb=_jittered_rgb(rng, COLOURS[colour]),
        centre=tuple(round(float(v), 4) for v in centre),
        radius=round(float(radius), 4),
    )  # fmt: skip


def render(scene: Scene, px: int = NATIVE_PX) -> Image.Image:
    """The scene as an anti-aliased RGB image of `px` x `px` pixels."""
    if px < 8:
        raise ValueError(f"a scene needs at least 8 pixels a side, not {px}")
    side = px * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), _whole(scene.background_rgb))
    pen = ImageDraw.Draw(canvas)
    for item in scene.objects:
        x, y = item.centre
        draw_shape(pen, item.shape, (x * side, y * side), item.radius * side, _whole(item.rgb))
    return canvas.reduce(SUPERSAMPLING)


def draw_shape(pen: ImageDraw.ImageDraw, shape: str, centre: tuple[float, float], radius: float, fill: Any) -> None:
    """Fill a shape with hard edges; centre (x, y) and radius in pixels of the canvas of `pen`."""
    (x, y), r = centre, radius
    # Pillow paints the last pixel too, and counts from the middle of a pixel.
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r - 1, y + r - 1), fill=fill)
    else:
        pen.polygon([(x + u * r - 0.5, y + v * r - 0.5) for u, v in OUTLINES[shape]], fill=fill)


def _whole(rgb: tuple[float, float, float]) -> tuple[int, int, int]:
    return tuple(round(v) for v in rgb)


def caption(scene: Scene, wording: int | None = None, with_size: bool | None = None) -> str:
    """One caption of the scene; `None` lets the scene itself decide (always in the same way).

    wording: 0 ... len(WORDINGS) - 1. with_size: whether the sizes are mentioned.
    """
    chance = _caption_hash(scene)
    wording = chance % len(WORDINGS) if wording is None else wording
    if not 0 <= wording < len(WORDINGS):
        raise ValueError(f"wording must lie in 0 ... {len(WORDINGS) - 1}, not {wording}")
    with_size = (chance >> 16) % 2 == 0 if with_size is None else with_size
    sentence, part = WORDINGS[wording]
    objects = " and ".join(_word_object(o, part, with_size) for o in scene.objects)
    return sentence.format(o=objects, b=_with_article(scene.background), g=scene.background)


def _caption_hash(scene: Scene) -> int:
    return int.from_bytes(hashlib.sha256(repr(scene).encode()).digest()[:8], "big")


def _word_object(item: SceneObject, part: str, with_size: bool) -> str:
    noun = f"{item.size} {item.colour} {item.shape}" if with_size else f"{item.colour} {item.shape}"
    return part.format(a=_with_article(noun), n=noun, p=item.position)


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def write_coco(
    folder: Path, seed: int, count: int, two_objects: int, split: str = "heldout", px: int = NATIVE_PX,
    captions_per_image: int = 2,
) -> None:  # fmt: skip
    """Write a COCO-format set: images/*.png, captions.json and attributes.json (image id -> attributes).

    The `two_objects` images that show two objects are spread evenly, so that any stretch of ids is a fair sample.
    """
    if not 0 <= two_objects <= count:
        raise ValueError(f"two_objects must lie in 0 ... {count}, not {two_objects}")
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations, attributes = [], [], {}
    for image_id in range(1, count + 1):
        two = image_id * two_objects // count > (image_id - 1) * two_objects // count
        scene = draw_scene(seed, split, image_id, float(two))
        name = f"{image_id:012d}.png"
        render(scene, px).save(folder / "images" / name)
        images.append({"id": image_id, "file_name": name, "width": px, "height": px})
        attributes[str(image_id)] = scene.attributes()
        for k in range(captions_per_image):
            wording = (_caption_hash(scene) + k) % len(WORDINGS)
            text = caption(scene, wording)
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "caption": text})
    _write_json(folder / "captions.json", {"images": images, "annotations": annotations})
    _write_json(folder / "attributes.json", attributes)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
