"""Grids of samples drawn while a stage trains, by its averaged weights: the same prompts and noise every time, and in every
stage of one resolution the same noise too, so that stages can be compared picture by picture.
"""

import json
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from pipeline.artifacts import atomic
from pipeline.config.steps import Settings, TrainSlice
from pipeline.diffusion import normals, sample
from pipeline.engine.objective import Objective
from pipeline.model import MicroDiT
from pipeline.train.data import Samples

if TYPE_CHECKING:
    from pipeline.frozen.vae import Vae
    from pipeline.train.scores import Scores

IMAGES, COLUMNS = 8, 4  # without prompts in the settings
STEPS, GUIDANCE = 12, 3.0


class SampleGrid:
    """Draws grids into a folder. The VAE is loaded with the first grid, a text encoder only for prompts of one's own.

    Without prompts in the settings they are the first captions of the evaluation set, where `scores` are on, so that all
    stages have the same ones; else the first captions of the stage's own data, of which only the embeddings are here.
    """

    def __init__(self, slice_: TrainSlice, settings: Settings, samples: Samples, objective: Objective, device: torch.device):
        self._slice, self._prompts, self._samples = slice_, settings.runtime.sample_prompts, samples
        self._objective, self._device, self._batch = objective, device, settings.runtime.sample_batch
        self.scores: Scores | None = None

    def draw(self, model: MicroDiT, file: Path) -> None:
        """Write a grid as PNG with its prompts, if it is not there yet. Raises: UserError if a model cannot be loaded."""
        if file.exists():
            return
        config, was_training = model.config, model.training
        shape = (config.in_channels, config.input_size, config.input_size)
        prompts, text = self._asked
        z = normals(self._slice.seed, "grid", torch.arange(len(text)), math.prod(shape))
        noise = z.to(self._device).view(-1, *shape)
        images = [
            self.vae.decode(sample(model.eval(), *part, self._objective.edm, STEPS, GUIDANCE, encode=model.encode_text))
            for part in zip(noise.split(self._batch), text.split(self._batch), strict=True)
        ]
        model.train(was_training)
        with atomic(file) as temporary:
            grid_image(torch.cat(images).cpu()).save(temporary, format="PNG", pnginfo=_info(len(text), prompts))

    @cached_property
    def vae(self) -> "Vae":
        from pipeline.frozen.vae import load_vae  # diffusers takes seconds to import

        return load_vae(self._slice.vae, self._device)

    @cached_property
    def _asked(self) -> tuple[list[str] | None, Tensor]:
        """Prompts, None where they are not known, and their embeddings [N, L, Dt]."""
        if self._prompts:
            return self._prompts, self._embedded()
        if self.scores is not None and self.scores.on:
            prompts, text = self.scores.first_captions(IMAGES)
            return prompts, text.to(self._device)
        return None, self._samples.first_text(IMAGES).to(self._device)

    def _embedded(self) -> Tensor:
        from pipeline.frozen.text import load_text_encoder

        slice_, drops_padding = self._slice, self._objective.config.drop_text_padding
        encoder = load_text_encoder(slice_.text_encoder, slice_.text_tokens, self._device, drops_padding)
        return encoder.encode(self._prompts)[0].float()


def _info(images: int, prompts: list[str] | None) -> PngInfo:
    """What the report needs to take the grid apart, as text of the PNG."""
    info = PngInfo()
    info.add_text("grid", json.dumps({"images": images, "columns": min(images, COLUMNS), "prompts": prompts}))
    return info


def grid_image(images: Tensor) -> Image.Image:
    """Images [N, 3, H, W] in [0, 1] side by side, four a row."""
    count, _, height, width = images.shape
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    canvas = torch.ones(rows * columns, 3, height, width)
    canvas[:count] = images
    tiled = canvas.view(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    return Image.fromarray((tiled * 255).round().to(torch.uint8).numpy())
