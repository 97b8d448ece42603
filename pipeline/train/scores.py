"""FID and CLIP score of the averaged weights while a stage trains, on a small fixed set.

Captions, noise and sampler are those of the final evaluation, the same every time and in every stage, so that the numbers
make one curve. What judges images is imported when it is asked for: a stage without scores needs none of it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.config.steps import Settings, TrainSlice
from pipeline.dataset import Manifest
from pipeline.diffusion import normals, sample
from pipeline.engine.objective import Objective
from pipeline.errors import UserError
from pipeline.fingerprint import digest
from pipeline.frozen.models import content, identity
from pipeline.frozen.pixels import unsigned
from pipeline.model import MicroDiT
from pipeline.train.network import check_frozen

if TYPE_CHECKING:
    from pipeline.frozen.clip import Clip
    from pipeline.frozen.vae import Vae
    from pipeline.metrics.features import FeatureNetwork
    from pipeline.metrics.fid import Reference
    from pipeline.reals import Real


class EvaluationSet(NamedTuple):
    """Sidecars of images and of captions, shard by shard in the same order. Without any there are no scores."""

    images: Sequence[Path] = ()
    captions: Sequence[Path] = ()


class Judges(NamedTuple):
    """The networks that look at images."""

    fid: "FeatureNetwork"
    clip: "FeatureNetwork"
    text: "Clip"


class Known(NamedTuple):
    """What every scoring needs of the captions and the real images, in ordinary memory."""

    text: Tensor  # embeddings that the trained network takes, [N, L, Dt] float32
    clip: np.ndarray  # embeddings that the CLIP score compares with, [N, D]
    real: "Reference"


class Scores:
    """Scores images drawn for the first captions of the evaluation set, if it is `on`.

    No judge is held between two scorings, so that training has the device's memory for itself.
    """

    def __init__(
        self,
        slice_: TrainSlice,
        settings: Settings,
        chosen: EvaluationSet,
        manifest: Manifest,
        objective: Objective,
        device: torch.device,
        vae: "Callable[[], Vae]",
    ) -> None:
        self._slice, self._runtime, self._set, self._manifest = slice_, settings.runtime, chosen, manifest
        self._objective, self._device, self._vae = objective, device, vae
        self._known: Known | None = None
        self.on = settings.evaluation is not None and settings.evaluation.curve.images > 0 and bool(chosen.images)
        if settings.evaluation is not None:
            self._evaluation, self._curve = settings.evaluation, settings.evaluation.curve
            self._fid = self._curve.features or self._evaluation.features

    @property
    def every_images(self) -> int:
        return self._curve.every_images

    @cached_property
    def id(self) -> str:
        """Short hash of all that makes the numbers but the weights and the resolution: points of one id can be compared."""
        from pipeline.reals import captions_sha256

        evaluation, slice_ = self._evaluation, self._slice
        network = self._fid if self._fid == "inception" else content(identity(self._fid))  # Inception's weights are fixed
        frozen = [content(identity(ref)) for ref in (evaluation.clip_score, slice_.vae, slice_.text_encoder)]
        sampler = [evaluation.sampler.model_dump(), self._curve.steps, evaluation.guidance, evaluation.seed]
        captions, networks = captions_sha256(self._reals), [network, *frozen, slice_.text_tokens]
        return digest({"captions": captions, "networks": networks, "resize": evaluation.resize, "sampler": sampler})

    def prepare(self) -> None:
        """All that can be done before a stage is trained, so that what is missing is missed at once.

        Raises: UserError for too few captions, a model that is missing, or another text encoder than that of the data.
        """
        if self._known is None:
            self._known = self._know(self._judges())

    def first_captions(self, count: int) -> tuple[list[str], Tensor]:
        """The first captions of the set, `count` or fewer, and their embeddings [N, L, Dt] float32."""
        self.prepare()
        return [real.caption for real in self._reals[:count]], self._known.text[:count]

    def measure(self, model: MicroDiT) -> dict[str, Any]:
        """`curve_fid` and `curve_clip_score` of `curve_images` images that the averaged network draws, and their `curve_id`."""
        from pipeline.metrics.clip_score import clip_score
        from pipeline.metrics.fid import gaussian

        self.prepare()
        rows, clip_rows = self._rows(self._judges(), model, self._known.text)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        fid, score = self._known.real.distance(gaussian(rows)), clip_score(clip_rows, self._known.clip)
        return {"curve_fid": fid, "curve_clip_score": score, "curve_images": len(rows), "curve_id": self.id}

    @cached_property
    def _reals(self) -> "list[Real]":
        from pipeline.metrics.fid import LEAST_IMAGES
        from pipeline.reals import read_reals, with_captions

        if self._curve.images < LEAST_IMAGES:
            raise UserError(f"evaluation.curve.images: {self._curve.images}; give {LEAST_IMAGES} or more, or 0 for no scores")
        return with_captions(read_reals(*map(list, self._set)), self._evaluation.images)[: self._curve.images]

    def _judges(self) -> Judges:
        from pipeline.frozen.clip import load_clip
        from pipeline.metrics.features import clip_tower, inception

        ref = self._evaluation.clip_score
        text = load_clip(ref, self._device)
        clip = clip_tower(ref, text)
        if self._fid == ref:
            return Judges(clip, clip, text)
        if self._fid == "inception":
            return Judges(inception(self._device, self._runtime.downloads), clip, text)
        return Judges(clip_tower(self._fid, load_clip(self._fid, self._device)), clip, text)

    def _know(self, judges: Judges) -> Known:
        from pipeline.metrics.fid import Reference

        captions = [real.caption for real in self._reals]
        px = self._objective.config.input_size * self._vae().factor
        real = self._features(judges.fid, (real.pixels(px) for real in self._reals), self._evaluation.resize)
        clip = self._in_batches(judges.text.text_features, captions).numpy()
        return Known(self._embedded(captions), clip, Reference(real))

    def _embedded(self, captions: list[str]) -> Tensor:
        from pipeline.frozen.text import load_text_encoder

        slice_, drops_padding = self._slice, self._objective.config.drop_text_padding
        check_frozen(self._manifest, "text_encoder", slice_.text_encoder)
        encoder = load_text_encoder(slice_.text_encoder, slice_.text_tokens, self._device, drops_padding)
        return self._in_batches(lambda part: encoder.encode(part)[0], captions)

    def _in_batches(self, embed: Callable[[list[str]], Tensor], captions: list[str]) -> Tensor:
        batch = self._runtime.encode_batch
        parts = (captions[first : first + batch] for first in range(0, len(captions), batch))
        return torch.cat([embed(part).float().cpu() for part in parts])

    def _rows(self, judges: Judges, model: MicroDiT, text: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Features [N, D] of the drawn images for the FID and for the CLIP score; never more than a batch of images."""
        fid, clip = [], []
        for images in self._drawn(model, text):
            fid.append(self._features(judges.fid, images, self._evaluation.resize))
            same = judges.clip is judges.fid and self._evaluation.resize == "clean"
            clip.append(fid[-1] if same else self._features(judges.clip, images, "clean"))
        return np.concatenate(fid), np.concatenate(clip)

    def _features(self, network: "FeatureNetwork", images: Any, resize: str) -> np.ndarray:
        from pipeline.metrics.features import features

        return features(network, images, resize, self._device, self._runtime.encode_batch)

    def _drawn(self, model: MicroDiT, text: Tensor) -> Iterator[np.ndarray]:
        """Batches of images [B, px, px, 3] uint8, from the noise that the evaluation starts from."""
        evaluation, precision, config = self._evaluation, self._objective.precision, model.config
        shape = (config.in_channels, config.input_size, config.input_size)
        how = {"method": evaluation.sampler.name, "interval": evaluation.sampler.interval, "encode": model.encode_text}
        for places in torch.arange(len(text)).split(self._runtime.sample_batch):
            z = normals(evaluation.seed, "evaluation", places, math.prod(shape)).unflatten(1, shape).to(self._device)
            part = text[places].to(self._device)
            with torch.autocast(self._device.type, precision, enabled=precision != torch.float32):
                latents = sample(model, z, part, self._objective.edm, self._curve.steps, evaluation.guidance, **how)
            yield unsigned(self._vae().decode(latents))
