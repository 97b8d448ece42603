"""PickScore (arXiv 2305.01569): a CLIP fine-tuned on people's choices; its temperature times the cosine."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from pipeline.frozen.clip import Clip
from pipeline.frozen.models import identity


class PickScore:
    """A CLIPModel of transformers with tokenizer and image processor. Captions are cut at its number of tokens."""

    def __init__(self, ref: str, clip: Clip) -> None:
        self.identity = identity(ref)
        self._clip = clip

    def scores(self, files: Sequence[Path], captions: Sequence[str]) -> list[float]:
        pictures = []
        for file in files:
            with Image.open(file) as picture:
                pictures.append(picture.convert("RGB"))
        shown = self._clip.image_features(self._clip.pixels(pictures))
        asked = self._clip.text_features(captions)
        return (self._clip.scale * torch.nn.functional.cosine_similarity(shown, asked)).tolist()
