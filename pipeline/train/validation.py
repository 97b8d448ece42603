"""The loss on held-out samples at fixed noise levels, of the averaged weights, on all tokens.

Noise levels and noise are the same every time, so the numbers of one run can be compared, and so can those of all
stages at the same resolution.
"""

import math
from typing import Any

import torch

from pipeline.config.steps import Settings, TrainSlice
from pipeline.diffusion import normals
from pipeline.engine.objective import Objective
from pipeline.model import MicroDiT
from pipeline.train.data import Samples


class Validation:
    """Measures if there are held-out samples: `samples` is their number."""

    def __init__(self, slice_: TrainSlice, settings: Settings, samples: Samples, objective: Objective, device: torch.device):
        self._batches = samples.validation(settings.validation.images)
        self.samples = sum(len(batch.positions) for batch in self._batches)
        self._objective, self._device, self._seed = objective, device, slice_.seed
        self._sigmas, self._size = settings.validation.sigmas, settings.runtime.sample_batch

    @torch.no_grad()
    def measure(self, model: MicroDiT) -> dict[str, Any]:
        """validation_loss: the mean over the noise levels; validation_by_sigma: the loss at each."""
        losses = [self._at(model, sigma) for sigma in self._sigmas]
        by_sigma = {f"{sigma:g}": loss for sigma, loss in zip(self._sigmas, losses, strict=True)}
        return {"validation_loss": sum(losses) / len(losses), "validation_by_sigma": by_sigma}

    def _at(self, model: MicroDiT, sigma: float) -> float:
        """The weighted EDM loss at one noise level; every image weighs the same."""
        edm, precision = self._objective.edm, self._objective.precision
        normal = (math.log(sigma) - edm.p_mean) / edm.p_std  # what the loss turns into this sigma
        total = 0.0
        for part in (part.to(self._device) for batch in self._batches for part in batch.split(self._size)):
            count = math.prod(part.latents.shape[1:])
            noise = normals(self._seed, "validation/noise", part.positions, count).view_as(part.latents)
            same = torch.full_like(noise[:, 0, 0, 0], normal)
            with torch.autocast(self._device.type, precision, enabled=precision != torch.float32):
                loss = edm.loss(model, part.latents, part.text, same, noise, model.config.patch_size)
            total += float(loss.per_image.double().sum())
        return total / self.samples
