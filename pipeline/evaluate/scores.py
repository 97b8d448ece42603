"""The scores of an evaluation, and the scale to read its FID by."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.embedded import detector
from pipeline.frozen.clip import Clip
from pipeline.metrics.clip_score import clip_score
from pipeline.metrics.features import FeatureNetwork, features
from pipeline.metrics.fid import fid, kid
from pipeline.reals import Real
from pipeline.runtime import progress


class Prepared:
    """Real images as squares of `px`, read from their shards when asked for."""

    def __init__(self, reals: Sequence[Real], px: int) -> None:
        self.reals, self.px = reals, px

    def __len__(self) -> int:
        return len(self.reals)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (real.pixels(self.px) for real in self.reals)

    def batch(self, indices: Sequence[int]) -> np.ndarray:
        """[B, px, px, 3] uint8."""
        return np.stack([self.reals[i].pixels(self.px) for i in indices])


@dataclass(frozen=True)
class Scorer:
    """The networks that judge images. `resize` is clean-fid's mode for FID and KID; the CLIP score always uses `clean`."""

    network: FeatureNetwork
    clip: Clip
    clip_tower: FeatureNetwork
    resize: str
    device: torch.device
    batch: int

    def features(self, images: Any, what: str) -> np.ndarray:
        """Features [N, width] of sized, iterable images under FID and KID."""
        return self._features(self.network, images, self.resize, f"features of {what}")

    def clip_score(self, images: Any, texts: np.ndarray, what: str) -> float:
        """CLIP score of images against the text embeddings [N, D] of their captions."""
        return clip_score(self._features(self.clip_tower, images, "clean", f"CLIP score of {what}"), texts)

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """CLIP's text embeddings [N, D]."""
        parts = (captions[i : i + self.batch] for i in range(0, len(captions), self.batch))
        return np.concatenate([self.clip.text_features(part).cpu().numpy() for part in parts])

    def _features(self, network: FeatureNetwork, images: Any, resize: str, what: str) -> np.ndarray:
        with progress(what, len(images)) as bar:
            return features(network, images, resize, self.device, self.batch, bar.update)


def two_draws(total: int, images: int, seed: int) -> np.ndarray:
    """Rows [2, M] of two disjoint random draws from `total` real images, M = `images` or half of the total.

    Random, because a set may be sorted: neighbours in the order of ids are not two draws of one distribution.
    """
    size = min(images, total // 2)
    return np.random.default_rng(seed).permutation(total)[: 2 * size].reshape(2, size)


def distances(made: np.ndarray, reference: np.ndarray, seed: int) -> dict[str, float]:
    """FID and KID of features [N, D] against those of the reference."""
    kernel = kid(made, reference, seed=seed)
    return {"fid": fid(made, reference), "kid": kernel.value, "kid_std_error": kernel.std_error}


def accuracy(images: Iterable[np.ndarray], reals: Sequence[Real]) -> dict[str, Any] | None:
    """Share of the attributes that the images show, by number of objects; None if no caption came with attributes."""
    kept = [(image, real.attributes) for image, real in zip(images, reals, strict=True) if real.attributes]
    return detector.score(*zip(*kept, strict=True)) if kept else None
