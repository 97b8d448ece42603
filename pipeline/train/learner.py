"""The training step of a stage, started from the seed, from the stage before, or from a checkpoint."""

from dataclasses import fields, replace

import torch
from torch import Tensor

from pipeline.config.steps import Settings, TrainSlice
from pipeline.engine.objective import Objective
from pipeline.engine.optimizer import MOMENTS, local
from pipeline.engine.recipe import Recipe
from pipeline.engine.step import Speed, TrainStep
from pipeline.errors import UserError
from pipeline.model import MicroDiT
from pipeline.train.checkpoint import Checkpoints, Tensors
from pipeline.train.network import Parent, starting_model
from pipeline.train.processes import Processes


def recipe_of(slice_: TrainSlice) -> Recipe:
    """The numbers of the stage that the step needs."""
    stage = slice_.stage
    numbers = {field.name: getattr(stage, field.name) for field in fields(Recipe) if field.name not in ("name", "seed")}
    return Recipe(**{**numbers, "posthoc_ema": tuple(stage.posthoc_ema)}, name=slice_.name, seed=slice_.seed)


class Learner(TrainStep):
    """A step that can be saved and loaded, its tensors whole in every file, however they are spread over processes.

    Raises: UserError if the parent's tensors do not fit.
    """

    def __init__(
        self, slice_: TrainSlice, settings: Settings, objective: Objective, parent: Parent | None, processes: Processes
    ) -> None:
        self._processes = processes
        runtime = settings.runtime
        speed = Speed.of(processes.device)
        if runtime.compile != "auto":
            speed = replace(speed, compile=runtime.compile == "on")
        microbatch = None if runtime.microbatch == "auto" else runtime.microbatch
        model = starting_model(objective.config, slice_, parent).to(processes.device)
        share = processes.share(slice_.stage.batch_images)[1]
        super().__init__(model, objective, share, speed=speed, microbatch=microbatch, parallel=processes)
        if parent and not slice_.stage.fresh_optimizer:
            self._load_optimizer(parent.tensors("optimizer"), str(parent.folder / "optimizer.safetensors"))

    def whole(self, name: str) -> Tensors:
        """The tensors of a file, whole: `model`, `ema`, `optimizer`, or `power-{width}`. For process 0; all must ask."""
        if name == "optimizer":
            return self._processes.whole(self.optimizer.tensors(), self._owners())
        return self._processes.whole(self._state(name))

    def files(self) -> list[str]:
        """Names of the files of a checkpoint."""
        return ["model", "ema", "optimizer", *(f"power-{width}" for width in self.power_emas)]

    def checkpoint_bytes(self) -> int:
        """Size of the tensors in the files of a checkpoint, whole."""
        states = [self._state(name) for name in self.files() if name != "optimizer"]
        moments = [self.optimizer.parameters] * len(MOMENTS)
        return sum(tensor.numel() * tensor.element_size() for part in (*states, *moments) for tensor in part.values())

    def load(self, checkpoints: Checkpoints, images: int) -> None:
        """Go on from the checkpoint at `images`."""
        for name in self.files():
            tensors = checkpoints.load(images, name)
            if name == "optimizer":
                self._load_optimizer(tensors, str(checkpoints.path(images)))
            else:
                self._copy(self._state(name), tensors)
        self.guard.load(checkpoints.state(images).guard)

    def ema_model(self) -> MicroDiT:
        """The averaged network, for process 0 to sample from. All must ask."""
        tensors = self.whole("ema")
        if self._processes.is_main:
            tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        return MicroDiT.from_state(self.objective.config, tensors).requires_grad_(False).eval()

    def _state(self, name: str) -> Tensors:
        if name.startswith("power-"):
            return self.power_emas[float(name.removeprefix("power-"))].tensors
        return self.ema.tensors if name == "ema" else self.model.state_dict()

    @torch.no_grad()
    def _copy(self, mine: Tensors, whole: Tensors) -> None:
        for name, tensor in mine.items():
            local(tensor).copy_(self._processes.part(tensor, whole[name]))

    def _owners(self) -> dict[str, Tensor]:
        """For every tensor of the optimiser the parameter that it belongs to."""
        return {key: self.optimizer.parameters[key.rpartition(".")[0]] for key in self.optimizer.tensors() if key != "step"}

    def _load_optimizer(self, tensors: Tensors, origin: str) -> None:
        try:
            self.optimizer.load(tensors, lambda name, tensor: self._processes.part(self.optimizer.parameters[name], tensor))
        except ValueError as error:
            raise UserError(f"{origin}: {error}; set fresh_optimizer: true") from error
