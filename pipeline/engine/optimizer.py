"""AdamW (arXiv 1711.05101), its learning rate as a function of images, and its state as named tensors."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.engine.recipe import Recipe

MOMENTS = ("exp_avg", "exp_avg_sq")


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor (a DTensor) that lies in this process, sharing its memory; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class AdamW:
    """One group: weight decay falls on every parameter, biases and norms too, as in the official code.

    It works on the local parts of the parameters, so that one fused kernel serves whole and sharded models alike.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, fused: bool = True) -> None:
        self.parameters = dict(model.named_parameters())
        self._locals = {name: nn.Parameter(local(p).detach(), requires_grad=False) for name, p in self.parameters.items()}
        self._adamw = torch.optim.AdamW(
            self._locals.values(),
            lr=recipe.learning_rate,
            betas=recipe.betas,
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
            fused=fused,
            foreach=not fused,
        )
        self._adamw.grad_scale = None
        self._fused = fused

    def gradients(self) -> list[Tensor]:
        """Local parts of the gradients. Raises RuntimeError naming a parameter that has none."""
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                raise RuntimeError(f"{name} took no part in the loss")
        return [local(parameter.grad) for parameter in self.parameters.values()]

    @torch.no_grad()
    def step(self, rate: float, gradients: list[Tensor], skip: Tensor) -> None:
        """One step with these gradients; where `skip` [] is 1 nothing changes, and the host need not know."""
        for parameter, gradient in zip(self._locals.values(), gradients, strict=True):
            parameter.grad = gradient
        self._adamw.param_groups[0]["lr"] = rate
        if self._fused:
            self._adamw.found_inf = skip
            self._adamw.step()
        elif not skip.item():  # the kernels that are not fused cannot skip by themselves
            self._adamw.step()
        for parameter in self._locals.values():
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """AdamW's state by parameter name, and `step`, which all parameters share; empty before the first step."""
        tensors = {}
        for name, parameter in self._locals.items():
            for moment in MOMENTS if parameter in self._adamw.state else ():
                tensors[f"{name}.{moment}"] = self._adamw.state[parameter][moment]
                tensors["step"] = self._adamw.state[parameter]["step"]
        return tensors

    def load(self, tensors: dict[str, Tensor], part: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor) -> None:
        """Continue from what `tensors` gave. `part` cuts the local part out of a whole tensor of that parameter.

        Raises ValueError naming a key that is missing or of another shape.
        """
        state, step = {}, _found(tensors, "step", torch.Size([]))
        for index, (name, parameter) in enumerate(self.parameters.items()):
            found = {moment: _found(tensors, f"{name}.{moment}", parameter.shape) for moment in MOMENTS}
            state[index] = {moment: part(name, tensor).clone() for moment, tensor in found.items()}
            state[index]["step"] = step.clone()
        self._adamw.load_state_dict({"state": state, "param_groups": self._adamw.state_dict()["param_groups"]})


def _found(tensors: dict[str, Tensor], key: str, shape: torch.Size) -> Tensor:
    found = tensors.get(key)
    if found is None or found.shape != shape:
        fault = "missing" if found is None else f"of shape {list(found.shape)}, needed is {list(shape)}"
        raise ValueError(f"{key} is {fault}")
    return found


def learning_rate(recipe: Recipe, images: int) -> float:
    """The rate of the step that brings the stage to `images` images seen: linear warm-up, then constant or a cosine
    that reaches learning_rate · final_lr_ratio with the last step."""
    if images < recipe.warmup_images:
        return recipe.learning_rate * images / recipe.warmup_images
    if recipe.schedule == "constant":
        return recipe.learning_rate
    progress = (images - recipe.warmup_images) / max(recipe.images - recipe.warmup_images, 1)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return recipe.learning_rate * (recipe.final_lr_ratio + (1 - recipe.final_lr_ratio) * cosine)
