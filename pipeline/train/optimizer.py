"""AdamW (arXiv 1711.05101), its learning rate as a function of images, and its state as named tensors."""

import math

import torch
from torch import Tensor, nn

from pipeline.config.schema import Stage
from pipeline.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw(model: nn.Module, stage: Stage) -> torch.optim.AdamW:
    """One group: weight decay falls on every parameter, biases and norms too, as in the official code."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=stage.learning_rate,
        betas=stage.betas,
        eps=stage.eps,
        weight_decay=stage.weight_decay,
        fused=True,
    )


def learning_rate(stage: Stage, images: int) -> float:
    """The rate of the step that brings the stage to `images` images seen: linear warm-up, then constant or a cosine
    that reaches learning_rate · final_lr_ratio with the last step."""
    if images < stage.warmup_images:
        return stage.learning_rate * images / stage.warmup_images
    if stage.schedule == "constant":
        return stage.learning_rate
    progress = (images - stage.warmup_images) / max(stage.images - stage.warmup_images, 1)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return stage.learning_rate * (stage.final_lr_ratio + (1 - stage.final_lr_ratio) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(optimizer: torch.optim.AdamW, model: nn.Module) -> dict[str, Tensor]:
    """AdamW's state by parameter name, and `step`, which all parameters share; empty before the first step."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for moment in MOMENTS if parameter in optimizer.state else ():
            tensors[f"{name}.{moment}"] = optimizer.state[parameter][moment]
            tensors["step"] = optimizer.state[parameter]["step"]
    return tensors


def load_optimizer(optimizer: torch.optim.AdamW, model: nn.Module, tensors: dict[str, Tensor], origin: object) -> None:
    """Continue from `tensors`, what `optimizer_tensors` gave; `origin` is named in errors.

    Raises: UserError naming a key that is missing or of another shape.
    """
    state = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        for moment in MOMENTS:
            found = tensors.get(f"{name}.{moment}")
            if found is None or found.shape != parameter.shape:
                fault = "missing" if found is None else f"of shape {list(found.shape)}, needed is {list(parameter.shape)}"
                raise UserError(f"{origin}: {name}.{moment} is {fault}; set fresh_optimizer: true")
        state[index] = {moment: tensors[f"{name}.{moment}"].clone() for moment in MOMENTS} | {"step": tensors["step"].clone()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
