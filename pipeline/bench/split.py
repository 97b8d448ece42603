"""Where the time of a training step goes: mixer, backbone, optimiser, rest.

Forward passes are cut at the inputs of modules, backward passes where the gradients of those inputs arrive. On a GPU the
cuts are events in its stream, so that nothing waits for them.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.engine.step import TrainStep

PARTS = ("mixer", "backbone", "optimiser", "rest")


class Split:
    """Adds up seconds by part of all steps made inside `recording`."""

    def __init__(self, step: TrainStep) -> None:
        self._step, self._gpu = step, step.device.type == "cuda"
        self._cuts: list[tuple[str, Any]] = []  # what begins, and when

    @contextmanager
    def recording(self) -> Iterator[None]:
        model, update = self._step.model, self._step.update
        cuts = [(model.blocks[0], "backbone", "mixer"), (model.final_layer, "rest", "backbone")]
        if len(model.patch_mixer):
            cuts.append((model.patch_mixer[0], "mixer", "rest"))
        handles = [self._cut(*cut) for cut in cuts]
        self._step.update = self._timed(update)
        self._mark("rest")
        yield
        self._mark("rest")
        self._step.update = update
        for handle in handles:
            handle.remove()

    def seconds(self) -> dict[str, float]:
        """By part. The device must be done."""
        spent: dict[str, float] = defaultdict(float)
        for (part, start), (_, end) in zip(self._cuts, self._cuts[1:], strict=False):
            spent[part] += start.elapsed_time(end) / 1e3 if self._gpu else end - start
        return {part: spent[part] for part in PARTS}

    def _cut(self, module: nn.Module, forward: str, backward: str) -> Any:
        """At the module's input: what begins in the forward pass, and what begins once its gradient is there."""

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._mark(forward)
            if inputs[0].requires_grad:
                inputs[0].register_hook(lambda gradient: self._mark(backward))

        return module.register_forward_pre_hook(hook)

    def _timed(self, update: Any) -> Any:
        def timed(images: int) -> Any:
            self._mark("optimiser")
            result = update(images)
            self._mark("rest")
            return result

        return timed

    def _mark(self, part: str) -> None:
        if self._gpu:
            event: Any = torch.cuda.Event(enable_timing=True)
            event.record()
        else:
            event = time.perf_counter()
        self._cuts.append((part, event))
