"""Grids of samples drawn while a stage trains: the same prompts and the same noise every time, averaged weights."""

import math
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pipeline.artifacts import atomic
from pipeline.config.steps import Settings, TrainSlice
from pipeline.diffusion import normals, sample
from pipeline.engine.objective import Objective
from pipeline.model import MicroDiT
from pipeline.train.data import Samples

IMAGES, COLUMNS = 8, 4  # without prompts in the settings: the first captions of the training data
STEPS, GUIDANCE = 12, 3.0


class SampleGrid:
    """Draws grids into a folder. The VAE is loaded with the first grid, a text encoder only for prompts of one's own."""

    def __init__(self, slice_: TrainSlice, settings: Settings, samples: Samples, objective: Objective, device: torch.device):
        self._slice, self._prompts, self._samples = slice_, settings.runtime.sample_prompts, samples
        self._objective, self._device, self._batch = objective, device, settings.runtime.sample_batch

    def draw(self, model: MicroDiT, file: Path) -> None:
        """Write a grid as PNG, if it is not there yet. Raises: UserError if the VAE cannot be loaded."""
        if file.exists():
            return
        config, was_training = model.config, model.training
        shape = (config.in_channels, config.input_size, config.input_size)
        z = normals(self._slice.seed, f"{self._slice.name}/grid", torch.arange(len(self._text)), math.prod(shape))
        noise = z.to(self._device).view(-1, *shape)
        images = [
            self._vae.decode(sample(model.eval(), *part, self._objective.edm, STEPS, GUIDANCE, encode=model.encode_text))
            for part in zip(noise.split(self._batch), self._text.split(self._batch), strict=True)
        ]
        model.train(was_training)
        with atomic(file) as temporary:
            grid_image(torch.cat(images).cpu()).save(temporary, format="PNG")

    @cached_property
    def _vae(self):
        from pipeline.frozen.vae import load_vae  # diffusers takes seconds to import

        return load_vae(self._slice.vae, self._device)

    @cached_property
    def _text(self) -> Tensor:
        """Text embeddings [N, L, Dt]."""
        if not self._prompts:
            return self._samples.first_text(IMAGES).to(self._device)
        from pipeline.frozen.text import load_text_encoder

        slice_, drops_padding = self._slice, self._objective.config.drop_text_padding
        encoder = load_text_encoder(slice_.text_encoder, slice_.text_tokens, self._device, drops_padding)
        return encoder.encode(self._prompts)[0].float()


def grid_image(images: Tensor) -> Image.Image:
    """Images [N, 3, H, W] in [0, 1] side by side, four a row."""
    count, _, height, width = images.shape
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    canvas = torch.ones(rows * columns, 3, height, width)
    canvas[:count] = images
    tiled = canvas.view(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    return Image.fromarray((tiled * 255).round().to(torch.uint8).numpy())
