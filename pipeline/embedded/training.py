"""What the trainings of the tiny frozen models share: batches of scenes, the optimiser loop, cards.

Scenes are drawn as they are needed (a tenth of a millisecond each), so that no model sees an image twice.
"""

import json
import math
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.embedded.muon import Muon
from pipeline.embedded.scenes import Scene, draw_scene, render

REPORT_EVERY = 100


def scenes_of(seed: int, split: str, start: int, count: int, two_object_share: float) -> list[Scene]:
    """The scenes start ... start + count - 1 of a split."""
    return [draw_scene(seed, split, i, two_object_share) for i in range(start, start + count)]


def pixels(scenes: Iterable[Scene], px: int) -> torch.Tensor:
    """Rendered scenes as float32 [B, 3, px, px] in [-1, 1]."""
    array = np.stack([np.asarray(render(scene, px)) for scene in scenes])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def images(batch: torch.Tensor) -> np.ndarray:
    """Tensors [B, 3, H, W] in [-1, 1] as uint8 images [B, H, W, 3]."""
    scaled = ((batch.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).numpy()


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak rate: linear warm-up over the first 5 % of the steps, then a cosine down to 1 %."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2


def optimise(
    name: str,
    matrices: Iterable[torch.nn.Parameter],
    others: Iterable[torch.nn.Parameter],
    loss_at: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    steps: int,
    muon_peak: float,
    adamw_peak: float,
    weight_decay: float = 0.0,
) -> float:
    """Minimise `loss_at(step) -> (loss, numbers to show)`, matrices by Muon, the others by AdamW.

    Returns the seconds it took.
    """
    matrices, others = list(matrices), list(others)
    parameters = matrices + others
    optimisers = [
        (Muon(matrices, lr=muon_peak), muon_peak),
        (torch.optim.AdamW(others, lr=adamw_peak, betas=(0.9, 0.98), weight_decay=weight_decay), adamw_peak),
    ]
    start = time.perf_counter()
    for step in range(steps):
        loss, shown = loss_at(step)
        _update(optimisers, parameters, loss, learning_rate(step, steps))
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            numbers = "  ".join(f"{key} {value:.4f}" for key, value in shown.items())
            seconds = time.perf_counter() - start
            print(f"{name}: step {step + 1}/{steps}  {seconds:.0f} s  loss {loss.item():.4f}  {numbers}", flush=True)
    return time.perf_counter() - start


def matrices_and_others(
    modules: Iterable[torch.nn.Module],
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Weights that mix features (linear layers, convolutions), and every other parameter, each once."""
    matrices: dict[int, torch.nn.Parameter] = {}
    others: dict[int, torch.nn.Parameter] = {}
    for part in (part for module in modules for part in module.modules()):
        for name, parameter in part.named_parameters(recurse=False):
            mixes = name == "weight" and parameter.ndim > 1 and not isinstance(part, torch.nn.Embedding)
            (matrices if mixes else others)[id(parameter)] = parameter
    # An output layer tied to an embedding appears in both; it is an embedding.
    return [p for key, p in matrices.items() if key not in others], list(others.values())


def _update(
    optimisers: list[tuple[torch.optim.Optimizer, float]],
    parameters: list[torch.nn.Parameter],
    loss: torch.Tensor,
    rate: float,
) -> None:
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimiser, peak in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate * peak
        optimiser.step()


def write_card(folder: Path, **facts: Any) -> None:
    """Write `folder`/card.json: what the model is, how it was trained and what was measured."""
    facts["versions"] = {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]}
    weights = list(folder.glob("*.safetensors"))
    for path in weights:
        path.chmod(0o644)  # safetensors writes files that only their owner may read
    facts["bytes"] = sum(path.stat().st_size for path in weights)
    (folder / "card.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def rounded(values: dict[str, Any], digits: int = 4) -> dict[str, Any]:
    """`values` with every float, also in nested dicts, rounded for a card."""
    return {
        k: rounded(v, digits) if isinstance(v, dict) else round(v, digits) if isinstance(v, float) else v
        for k, v in values.items()
    }
