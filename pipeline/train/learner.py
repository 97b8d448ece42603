"""What training changes: the weights, their average and the optimiser; and the step that changes them."""

from contextlib import nullcontext

import torch
from torch import Tensor

from pipeline.config.steps import TrainSlice
from pipeline.diffusion import Loss
from pipeline.engine.batch import Batch
from pipeline.train.checkpoint import Checkpoints, Tensors
from pipeline.train.ema import Ema
from pipeline.train.network import Parent, starting_model
from pipeline.train.objective import Objective
from pipeline.train.optimizer import adamw, learning_rate, load_optimizer, optimizer_tensors, set_learning_rate
from pipeline.train.processes import Processes


class Learner:
    """Starts where the stage starts; `load` goes on from a checkpoint instead.

    Raises: UserError if the parent's tensors do not fit.
    """

    def __init__(
        self, slice_: TrainSlice, objective: Objective, parent: Parent | None, processes: Processes, microbatch: int | None
    ) -> None:
        self.stage, self._objective, self._processes = slice_.stage, objective, processes
        self._microbatch = microbatch or slice_.stage.batch_images
        self.model = starting_model(objective.config, slice_, parent).to(processes.device)
        self.ema = Ema(self.model, slice_.stage.ema_decay, slice_.stage.ema_start_images)
        self._optimizer = adamw(self.model, slice_.stage)
        if parent and not slice_.stage.fresh_optimizer:
            load_optimizer(self._optimizer, self.model, parent.tensors("optimizer"), parent.folder / "optimizer.safetensors")
        self._net = processes.wrap(self.model)

    def step(self, batch: Batch, images: int) -> tuple[list[Loss], Tensor]:
        """One optimiser step on this process's share of the batch that brings the stage to `images` images seen.

        Returns the losses of the microbatches and the gradient norm [] before clipping, both left on the device.
        """
        set_learning_rate(self._optimizer, learning_rate(self.stage, images))
        *parts, last = batch.split(self._microbatch)
        with self._processes.unsynchronised(self._net) if parts else nullcontext():
            losses = [self._backward(part) for part in parts]
        losses.append(self._backward(last))
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.stage.clip_norm, foreach=True)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.ema.update(images)
        return losses, grad_norm

    def _backward(self, part: Batch) -> Loss:
        """Add the gradient of a microbatch, weighted so that the sum is that of the mean over the global batch."""
        loss = self._objective(self._net, part.to(self._processes.device))
        share = len(part.positions) * self._processes.count / self.stage.batch_images  # gradients are averaged over processes
        (loss.mean * share).backward()
        return loss._replace(mean=loss.mean.detach())

    def tensors(self) -> dict[str, Tensors]:
        """All that a checkpoint needs, by file."""
        optimizer = optimizer_tensors(self._optimizer, self.model)
        return {"model": self.model.state_dict(), "ema": self.ema.model.state_dict(), "optimizer": optimizer}

    def load(self, checkpoints: Checkpoints, images: int) -> None:
        self.model.load_state_dict(checkpoints.load(images, "model"))
        self.ema.model.load_state_dict(checkpoints.load(images, "ema"))
        load_optimizer(self._optimizer, self.model, checkpoints.load(images, "optimizer"), checkpoints.path(images))
