"""Averages of the weights: the exponential one that is sampled from, and power functions for averages of any width.

A step that was skipped moves the averages once more towards the same weights.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from pipeline.engine.optimizer import local
from pipeline.engine.recipe import Recipe

Tensors = dict[str, Tensor]


class Average:
    """A running average of a model's weights, sharded as they are. After every step:
    average += (1 - decay(images)) · (weights - average)."""

    def __init__(self, model: nn.Module, decay: Callable[[int], float], foreach: bool = True) -> None:
        self.decay = decay
        self.tensors: Tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        pairs = [(local(self.tensors[name]), local(p.detach())) for name, p in model.named_parameters()]
        self._averages, self._weights = (list(side) for side in zip(*pairs, strict=True))
        self._foreach = foreach

    @torch.no_grad()
    def update(self, images: int) -> None:
        """The weights are those of the step that brought the stage to `images` images seen."""
        share = 1 - self.decay(images)
        if self._foreach:
            torch._foreach_lerp_(self._averages, self._weights, share)
            return
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.lerp_(weight, share)


def exponential(recipe: Recipe) -> Callable[[int], float]:
    """Constant decay a step; before `ema_start_images` the average just follows the weights."""
    return lambda images: 0.0 if images <= recipe.ema_start_images else recipe.ema_decay


def power_function(width: float, batch_images: int) -> Callable[[int], float]:
    """Decay of an average with the profile t^γ, whose standard deviation is `width` times the time trained
    (EDM2, arXiv 2312.02696, equations 121 and 127)."""
    gamma = exponent(width)
    return lambda images: (1 - batch_images / images) ** (gamma + 1)


def relative_width(gamma: float) -> float:
    """Standard deviation of the density proportional to t^γ on [0, 1]."""
    return (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5


@cache
def exponent(width: float) -> float:
    """The γ of a relative width, by bisection: the width falls as γ grows.

    Raises ValueError for a width that no γ >= 0 has: 0 < width <= 0.288.
    """
    if not 0 < width <= relative_width(0):
        raise ValueError(f"relative width {width}: give a number above 0 and at most {relative_width(0):.3f}")
    low, high = 0.0, 1.0
    while relative_width(high) > width:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if relative_width(middle) > width else (low, middle)
    return (low + high) / 2
