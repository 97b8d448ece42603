"""A network with every part of the large ones, its weights warmed, and training steps on made-up samples."""

import torch

from pipeline.diffusion import EDM
from pipeline.engine.batch import Batch
from pipeline.engine.objective import Objective
from pipeline.engine.recipe import Recipe
from pipeline.engine.step import Speed, TrainStep
from pipeline.model import MicroDiT, MicroDiTConfig

CONFIG = MicroDiTConfig(
    input_size=4,
    patch_size=1,
    dim=32,
    depth=3,
    head_dim=8,
    multiple_of=8,
    caption_channels=8,
    caption_length=3,
    mixer_depth=2,
    mixer_dim=16,
    num_experts=2,
    expert_capacity=1.0,
)
IMAGES = 12  # a batch


def recipe(**changes):
    numbers = dict(images=960, seed=3, batch_images=IMAGES, mask_ratio=0.5, learning_rate=1e-2, clip_norm=1.0, ema_decay=0.9)
    return Recipe("toy", **(numbers | changes))


def objective(**changes):
    return Objective(EDM(sigma_data=0.7), CONFIG, recipe(**changes))


def warmed(seed=0):
    """Every weight random, so that nothing hides behind the gates that start at zero."""
    model, generator = MicroDiT(CONFIG), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def samples(start=0, count=IMAGES):
    generator = torch.Generator().manual_seed(start)
    latents = torch.randn(count, CONFIG.in_channels, CONFIG.input_size, CONFIG.input_size, generator=generator)
    text = torch.randn(count, CONFIG.caption_length, CONFIG.caption_channels, generator=generator)
    return Batch(torch.arange(start, start + count), latents.half(), text.half())


def make_step(speed=Speed(), microbatch=IMAGES, model=None, **changes):  # noqa: B008  frozen
    return TrainStep(model or warmed(), objective(**changes), IMAGES, speed=speed, microbatch=microbatch)


def trained(step, steps=3):
    """All weights, and all of their averages, in a row each, after some steps."""
    for start in range(0, steps * IMAGES, IMAGES):
        step(samples(start), start + IMAGES)
    return flat(step.model), torch.cat([step.ema.tensors[name].flatten() for name, _ in step.model.named_parameters()])


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def distance(a, b):
    """Relative."""
    return float((a - b).norm() / b.norm())
