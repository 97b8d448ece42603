"""The scores of an evaluation, and the scale to read its distances by."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.artifacts import read_sidecar
from pipeline.config.evaluation import Evaluation
from pipeline.config.steps import Settings
from pipeline.embedded import detector
from pipeline.evaluate.views import View, load_networks, views
from pipeline.frozen.clip import Clip, load_clip
from pipeline.metrics import density_coverage, precision_recall
from pipeline.metrics.clip_score import clip_scores
from pipeline.metrics.features import features
from pipeline.metrics.fid import Reference, fid, kid
from pipeline.metrics.fid_infinity import fid_infinity
from pipeline.metrics.fid_interval import fid_interval
from pipeline.metrics.reference import kept
from pipeline.reals import PREPARATION, Real, order_sha256
from pipeline.runtime import progress

Metrics = dict[str, Any]


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


class Sets(NamedTuple):
    """Sized, iterable images: drawn; real ones with the same captions; `scale`: what else is compared with the real
    ones, by name, where there are any; and two disjoint draws of all real images."""

    samples: Any
    reals: Prepared
    scale: dict[str, Any]
    floor: list[list[Real]]


class Scores(NamedTuple):
    """Metrics by key of the card; distances by kind of images, each with their number; CLIP scores of samples [N]."""

    metrics: Metrics
    scale: dict[str, Metrics | None]
    clip_scores: np.ndarray


@dataclass(frozen=True)
class Judge:
    """The networks that judge images. Features of real images are kept in the folder `reference`; `shards` are the sha256
    of those they come from. `resamples` are those of the FID's interval."""

    views: list[View]
    clip: Clip
    device: torch.device
    batch: int
    seed: int
    resamples: int
    reference: Path
    shards: list[str]

    @classmethod
    def load(
        cls, evaluation: Evaluation, settings: Settings, device: torch.device, reference: Path, images: list[Path]
    ) -> "Judge":
        """`images` are the sidecars of the evaluation source. Raises: UserError for a model that is not to be had."""
        clips = cache(lambda ref: load_clip(ref, device))
        networks = load_networks(evaluation, clips, device, settings.runtime.downloads)
        return cls(
            views=views(evaluation, networks),
            clip=clips(evaluation.clip_score),
            device=device,
            batch=settings.runtime.encode_batch,
            seed=evaluation.seed,
            resamples=evaluation.bootstrap,
            reference=reference,
            shards=[read_sidecar(file, "images").sha256("images") for file in images],
        )

    def scores(self, sets: Sets) -> Scores:
        """Everything that is read off features; one view after the other, as features of many images are large."""
        metrics: Metrics = {"fid_by_resize": {}}
        scale: dict[str, Metrics | None] = {"floor": {"images": len(sets.floor[0])}}
        scale |= {name: {"images": len(images)} if len(images) else None for name, images in sets.scale.items()}
        rows = np.empty(0)
        for view in self.views:
            made, real = self._look(view, sets.samples, "samples"), self._look_at_reals(view, sets.reals)
            if view.captions:
                rows = self._clip_scores(metrics, made, real, [real.caption for real in sets.reals.reals])
            metrics |= self._of_samples(view, made, real)
            if view.by_resize:
                metrics["fid_by_resize"][view.resize] = metrics["fid"] if view.headline else fid(made, real)
            if view.distances:
                self._scale(view, sets, real, scale)
        return Scores(metrics, scale, rows)

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """CLIP's text embeddings [N, D]."""
        parts = (captions[i : i + self.batch] for i in range(0, len(captions), self.batch))
        return np.concatenate([self.clip.text_features(part).cpu().numpy() for part in parts])

    def _clip_scores(self, metrics: Metrics, made: np.ndarray, real: np.ndarray, captions: list[str]) -> np.ndarray:
        texts = self.texts(captions)
        rows = clip_scores(made, texts)
        metrics["clip_score"], metrics["clip_score_real"] = float(rows.mean()), float(clip_scores(real, texts).mean())
        return rows

    def _of_samples(self, view: View, made: np.ndarray, real: np.ndarray) -> Metrics:
        found: Metrics = {name: distance(made, real) for name, distance in view.distances.items()}
        if view.headline:
            found |= kernel_distance(made, real, self.seed) | manifolds(made, real)
            found |= spread(found["fid"], made, real, self.resamples, self.seed)
        return found

    def _scale(self, view: View, sets: Sets, real: np.ndarray, scale: dict[str, Metrics | None]) -> None:
        a, b = self._draws(view, sets, real)
        for name, distance in view.distances.items():
            scale["floor"][name] = distance(a, b)
        for kind, images in sets.scale.items():
            if len(images):
                seen = self._look(view, images, kind)
                scale[kind] |= {name: distance(seen, real) for name, distance in view.distances.items()}

    def _draws(self, view: View, sets: Sets, real: np.ndarray) -> list[np.ndarray]:
        """Features of the two draws of real images: what a perfect model would be measured by."""
        known = {real.key: row for real, row in zip(sets.reals.reals, real, strict=True)}
        others = [real for draw in sets.floor for real in draw if real.key not in known]
        rows = self._look_at_reals(view, Prepared(others, sets.reals.px)) if others else []
        known |= {real.key: row for real, row in zip(others, rows, strict=True)}
        return [np.stack([known[real.key] for real in draw]) for draw in sets.floor]

    def _look_at_reals(self, view: View, images: Prepared) -> np.ndarray:
        facts = {
            "ids": order_sha256(list(images.reals)),
            "shards": self.shards,
            "px": images.px,
            "preparation": PREPARATION,
            "resize": view.resize,
            "network": [view.network.identity, view.network.px],
        }
        return kept(self.reference, facts, len(images), lambda: self._look(view, images, "real images"))

    def _look(self, view: View, images: Any, what: str) -> np.ndarray:
        """Features [N, width]."""
        with progress(f"features of {what} in {view.network.name}", len(images)) as bar:
            return features(view.network, images, view.resize, self.device, self.batch, bar.update)


def two_draws(total: int, images: int, seed: int) -> np.ndarray:
    """Rows [2, M] of two disjoint random draws from `total` real images, M = `images` or half of the total.

    Random, because a set may be sorted: neighbours in the order of ids are not two draws of one distribution.
    """
    size = min(images, total // 2)
    return np.random.default_rng(seed).permutation(total)[: 2 * size].reshape(2, size)


def kernel_distance(made: np.ndarray, reference: np.ndarray, seed: int) -> Metrics:
    """KID of features [N, D] against those of the reference."""
    kernel = kid(made, reference, seed=seed)
    return {"kid": kernel.value, "kid_std_error": kernel.std_error}


def manifolds(made: np.ndarray, reference: np.ndarray) -> Metrics:
    """Precision and recall, density and coverage; None for sets that are too small to have so many neighbours."""
    few = min(len(made), len(reference))
    names = (*precision_recall.PrecisionRecall._fields, *density_coverage.DensityCoverage._fields)
    if few <= max(precision_recall.NEIGHBOURS, density_coverage.NEIGHBOURS):
        return dict.fromkeys(names)
    pair, other = precision_recall.precision_recall(made, reference), density_coverage.density_coverage(made, reference)
    return pair._asdict() | other._asdict()


def spread(value: float, made: np.ndarray, reference: np.ndarray, resamples: int, seed: int) -> Metrics:
    """How far to trust an FID of `value`: its interval and its bias at this number of images, None where not known."""
    fixed = Reference(reference)
    interval = fid_interval(made, fixed, resamples, seed) if resamples else None
    infinity = fid_infinity(made, fixed, seed)
    bias = None if infinity is None else value - infinity
    return {"fid_interval": interval and list(interval), "fid_infinity": infinity, "fid_bias": bias}


def accuracy(images: Iterable[np.ndarray], reals: Sequence[Real]) -> Metrics | None:
    """Share of the attributes that the images show, by number of objects; None if no caption came with attributes."""
    kept = [(image, real.attributes) for image, real in zip(images, reals, strict=True) if real.attributes]
    return detector.score(*zip(*kept, strict=True)) if kept else None
