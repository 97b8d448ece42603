"""Colours of detected objects: CLIP's nearest text to a picture of the object alone (GenEval, arXiv 2310.11513)."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.evaluate.geneval.prompts import COLORS
from pipeline.evaluate.geneval.scoring import Detection
from pipeline.frozen.clip import Clip

TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
BLANK = (153, 153, 153)  # around an object with a mask


def colours_read(image: np.ndarray, objects: Sequence[Detection]) -> list[str]:
    """Of a detector that reads colours itself."""
    return [one.colour or "unknown" for one in objects]


class ClipColours:
    """Names the colour of objects by zero-shot classification among COLORS."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._texts = cache(self._classifier)

    def __call__(self, image: np.ndarray, objects: Sequence[Detection]) -> list[str]:
        """`image` [H, W, 3] uint8; objects of one class."""
        if not objects:
            return []
        pixels = self._clip.pixels([crop(image, one) for one in objects])
        shares = _unit(self._clip.image_features(pixels)) @ self._texts(objects[0].name).T
        return [COLORS[i] for i in shares.argmax(1).tolist()]

    def _classifier(self, name: str) -> Tensor:
        """Unit vectors [colours, D]: the mean over the templates."""
        texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
        features = _unit(self._clip.text_features(texts)).unflatten(0, (len(COLORS), len(TEMPLATES)))
        return _unit(features.mean(1))


def crop(image: np.ndarray, found: Detection) -> Image.Image:
    """What lies in the box, blank where a mask says that it is not the object. At least one pixel."""
    shown = image if found.mask is None else np.where(found.mask[..., None], image, np.uint8(BLANK))
    height, width = image.shape[:2]
    left, top = (min(max(int(np.floor(side)), 0), most - 1) for side, most in zip(found.box[:2], (width, height), strict=True))
    right, bottom = (min(int(np.ceil(side)), most) for side, most in zip(found.box[2:], (width, height), strict=True))
    return Image.fromarray(shown[top : max(bottom, top + 1), left : max(right, left + 1)])


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features, dim=-1)
