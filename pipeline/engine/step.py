"""One optimiser step, in the order things happen. The bench measures what training runs, because it is this.

Nothing in a step waits for the device: losses and norms stay there until somebody reads them.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.diffusion import Loss
from pipeline.engine.batch import Batch
from pipeline.engine.compiled import compile_blocks, compiled_draw
from pipeline.engine.ema import Average, exponential, power_function
from pipeline.engine.guard import Guard
from pipeline.engine.memory import keep_freed_blocks
from pipeline.engine.microbatch import fitting
from pipeline.engine.objective import Objective
from pipeline.engine.optimizer import MOMENTS, AdamW, learning_rate, local
from pipeline.model import MicroDiT

ATTENTION = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True)
class Speed:
    """Optimisations, each with a switch so that it can be measured alone. None changes what is computed."""

    compile: bool = False
    fused_adamw: bool = True
    foreach_ema: bool = True
    joint_text: bool = False  # keys and values of the text for all blocks by one matmul
    attention: str = "auto"  # torch's choice, or one of ATTENTION
    keep_freed: bool = False  # blocks of memory stay with the process; once switched on, until it ends

    @classmethod
    def of(cls, device: torch.device) -> "Speed":
        """What was measured to be fastest: benchmarks/README.md."""
        return cls(compile=device.type == "cuda", keep_freed=device.type == "cpu")


class Parallel(Protocol):
    """What a step needs to know of the processes that train together."""

    count: int

    def wrap(self, model: nn.Module) -> nn.Module: ...
    def unsynchronised(self, net: nn.Module) -> AbstractContextManager: ...
    def total_norm(self, norm: Tensor) -> Tensor: ...
    def agree(self, code: int) -> int: ...


class Alone:
    """One process."""

    count = 1

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def unsynchronised(self, net: nn.Module) -> AbstractContextManager:
        return nullcontext()

    def total_norm(self, norm: Tensor) -> Tensor:
        return norm

    def agree(self, code: int) -> int:
        return code


class Measured(NamedTuple):
    """What a step leaves on the device."""

    losses: list[Loss]  # of the microbatches
    grad_norm: Tensor  # [], before clipping
    skipped: Tensor  # [], 1.0 if the step was not taken


class TrainStep:
    """What training changes (weights, averages, optimiser, guard) and the step that changes them.

    `microbatch` is a number of images, or None for as many as fit. `share` are the images of this process in a batch.
    """

    def __init__(
        self,
        model: MicroDiT,
        objective: Objective,
        share: int,
        *,
        speed: Speed = Speed(),
        microbatch: int | None = None,
        parallel: Parallel = Alone(),  # noqa: B008  stateless
    ) -> None:
        self.objective, self.recipe, self.speed, self._parallel = objective, objective.recipe, speed, parallel
        self._draw: Callable | None = None
        model.joint_text = speed.joint_text
        if speed.keep_freed:
            keep_freed_blocks()
        if speed.compile:
            compile_blocks(model)
            self._draw = compiled_draw(objective)
        self.net = parallel.wrap(model)  # sharding replaces the parameters, so all else comes after it
        self.model = model
        self.device = model.pos_embed.device
        self.optimizer = AdamW(model, self.recipe, fused=speed.fused_adamw)
        self.ema = Average(model, exponential(self.recipe), speed.foreach_ema)
        self.power_emas = {
            width: Average(model, power_function(width, self.recipe.batch_images), speed.foreach_ema)
            for width in self.recipe.posthoc_ema
        }
        self.guard = Guard(self.recipe.skip_norm_factor, self.device)
        self.microbatch = min(share, microbatch) if microbatch else self._fitting(share)

    def __call__(self, batch: Batch, images: int) -> Measured:
        """One step on this process's share of the batch that brings the stage to `images` images seen."""
        losses = self.gradients(batch)
        norm, skipped = self.update(images)
        return Measured(losses, norm, skipped)

    def gradients(self, batch: Batch) -> list[Loss]:
        """Losses of the microbatches, whose gradients add up. Where memory runs out they start anew with less at a time:
        until the update nothing has changed, and every random number belongs to its sample, not to the attempt.

        Raises torch.OutOfMemoryError where that cannot be: one image at a time, or other processes that wait for sums.
        """
        while True:
            try:
                return self._accumulate(batch)
            except torch.OutOfMemoryError:
                if self.microbatch == 1 or self._parallel.count > 1:
                    raise
            self._take_less()  # once the error is handled: its traceback keeps the tensors of the attempt

    def _accumulate(self, batch: Batch) -> list[Loss]:
        *parts, last = batch.split(self.microbatch)
        with self._attention():
            with self._parallel.unsynchronised(self.net) if parts else nullcontext():
                losses = [self.backward(part) for part in parts]
            losses.append(self.backward(last))
        return losses

    def _take_less(self) -> None:
        before, self.microbatch = self.microbatch, self.microbatch // 2
        self.model.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        told = f"out of memory with {before} images at a time; the step is repeated, and from here on it is {self.microbatch}"
        with suppress(BrokenPipeError):  # whoever reads the log may be gone
            print(told, file=sys.stderr, flush=True)

    def backward(self, part: Batch) -> Loss:
        """Add the gradient of a microbatch, weighted so that the sum is that of the mean over the global batch."""
        loss = self.objective(self.net, part.to(self.device), self._draw)
        share = len(part.positions) * self._parallel.count / self.recipe.batch_images  # processes are averaged over
        (loss.mean * share).backward()
        return loss._replace(mean=loss.mean.detach())

    def update(self, images: int) -> tuple[Tensor, Tensor]:
        """Clip, take or skip the optimiser's step, move the averages. Returns the gradient norm [] and whether skipped."""
        gradients = self.optimizer.gradients()
        norm = self._parallel.total_norm(torch.nn.utils.get_total_norm(gradients, foreach=True))
        torch._foreach_mul_(gradients, (self.recipe.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        skipped = self.guard.skips(norm)
        self.optimizer.step(learning_rate(self.recipe, images), gradients, skipped)
        self.model.zero_grad()
        for average in (self.ema, *self.power_emas.values()):
            average.update(images)
        return norm, skipped

    def _attention(self) -> AbstractContextManager:
        return nullcontext() if self.speed.attention == "auto" else sdpa_kernel(ATTENTION[self.speed.attention])

    def _fitting(self, share: int) -> int:
        largest = self._parallel.agree(share)  # shares may differ by one image
        sharded = any(local(p) is not p for p in self.model.parameters())
        attempt = None if sharded or self.device.type != "cuda" else self._attempt
        config, mask_ratio = self.objective.config, self.recipe.mask_ratio
        size = fitting(largest, config, mask_ratio, self.device, attempt, self._parallel.agree)
        return largest // self._parallel.agree(largest // size)  # the most parts that any process needs

    def _attempt(self, size: int) -> None:
        """Two microbatches of `size` made-up images, with room for what AdamW will allocate; leaves no trace.

        The second one's activations meet the gradients of the first, which is the peak of a step.
        """
        config = self.objective.config
        latents = torch.zeros(size, config.in_channels, config.input_size, config.input_size)
        text = torch.zeros(size, config.caption_length, config.caption_channels)
        room = [torch.empty_like(parameter) for parameter in self.model.parameters() for _ in MOMENTS]
        with self._attention(), self._parallel.unsynchronised(self.net):
            for _ in range(2):
                self.backward(Batch(torch.arange(size), latents, text))
        del room
        self.model.zero_grad()
