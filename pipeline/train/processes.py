"""The processes that train together: one, or those that torchrun or `accelerate launch` started.

Weights are whole in every process (data parallel, arXiv 2006.15704) or sharded over them (FSDP, arXiv 2304.11277).
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.engine.optimizer import local
from pipeline.errors import Ended, UserError
from pipeline.model import MicroDiT
from pipeline.runtime import pick_device

# How long the others wait for process 0 while it alone writes a checkpoint or draws a grid. That a process died is
# noticed at once, by its broken connections.
PATIENCE = timedelta(minutes=20)
# What gloo and NCCL say when a process at the other end is gone, or does not answer.
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "remote process exit")
LAUNCHED = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class Processes:
    """Who this process is among them, and what they agree on. Only process 0 (`is_main`) writes.

    A context: those that end well leave together, one that fails leaves the others at once.
    Raises: UserError if several processes were asked for, but would not train together.
    """

    def __init__(self, wanted_device: str, parallel: str = "ddp") -> None:
        device = pick_device(wanted_device)
        state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
        self.count, self.rank = state.num_processes, state.process_index
        _check_launched(self.count, device)
        self.device = state.device if self.count > 1 else device
        self.is_main = self.rank == 0
        self.sharded = parallel == "fsdp" and self.count > 1
        # Agreeing on a stop at every step must not wait for the GPU: these few bytes go between hosts.
        self._hosts = dist.new_group(backend="gloo", timeout=PATIENCE) if self.count > 1 else None

    def share(self, batch_images: int) -> tuple[int, int]:
        """First sample and number of samples of this process in a global batch; the shares are contiguous.

        Raises: UserError if a process would be left without a sample, or if shards of weights meet uneven shares.
        """
        if batch_images < self.count:
            raise UserError(f"batch_images: {batch_images} images cannot be shared by {self.count} processes; start fewer")
        if self.sharded and batch_images % self.count:  # every forward pass gathers weights from all: all do as many
            raise UserError(f"batch_images: {batch_images} images are no multiple of {self.count} processes; fsdp needs one")
        first, end = (batch_images * rank // self.count for rank in (self.rank, self.rank + 1))
        return first, end - first

    def wrap(self, model: MicroDiT) -> nn.Module:
        """The model, its gradients averaged over the processes by the backward pass."""
        if self.sharded:
            return self._shard(model)
        if self.count == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        replica = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        replica.broadcast_buffers = False  # after the first time: they are constants
        return replica

    def _shard(self, model: MicroDiT) -> MicroDiT:
        """Every parameter split over the processes, block by block."""
        assert not model.joint_text, "a block's weights are whole inside the block alone"
        mesh = init_device_mesh(self.device.type, (self.count,))
        # Nothing is done in place to what the network returns, whether it is a view or not.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        for module in (*model.patch_mixer, *model.blocks, model):
            fully_shard(module, mesh=mesh, shard_placement_fn=self._dimension)
        whole = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
        assert not whole, f"not sharded: {whole}"
        return model

    def _dimension(self, parameter: nn.Parameter) -> Shard:
        """The rows, or the columns if only they come out even: 8 experts over 16 processes would leave 8 with nothing."""
        rows, *columns = parameter.shape
        return Shard(1 if rows % self.count and columns and columns[0] % self.count == 0 else 0)

    def unsynchronised(self, net: nn.Module) -> AbstractContextManager:
        """A context in which gradients add up locally, for all microbatches but the last."""
        if self.sharded:
            return _unsynchronised_shards(net)
        return net.no_sync() if self.count > 1 else nullcontext()

    def total_norm(self, norm: Tensor) -> Tensor:
        """The gradient norm [] over all shards, from that of this process's."""
        return self.total(norm.square()).sqrt() if self.sharded else norm

    def part(self, parameter: Tensor, whole: Tensor) -> Tensor:
        """What this process holds of a whole tensor that belongs to `parameter`."""
        if not isinstance(parameter, DTensor):
            return whole
        placed = distribute_tensor(whole.to(self.device), parameter.device_mesh, parameter.placements, src_data_rank=None)
        return local(placed)

    def whole(self, tensors: dict[str, Tensor], like: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Whole tensors of parts; `like` has the parameters of parts that are plain tensors. All processes must ask.

        Those that are sharded come to the memory of process 0's host; the others get shapes alone (meta tensors), since
        none has room on its device for all of them.
        """
        return {name: self._whole(tensor, (like or {}).get(name, tensor)) for name, tensor in tensors.items()}

    def _whole(self, tensor: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor):
            return tensor
        placed = DTensor.from_local(local(tensor), like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
        whole = placed.full_tensor()
        return whole.cpu() if self.is_main else whole.to("meta")

    def agree(self, code: int) -> int:
        """The largest of the processes' codes, on all of them."""
        box = torch.tensor([code])
        if self.count > 1:
            dist.all_reduce(box, dist.ReduceOp.MAX, group=self._hosts)
        return int(box.item())

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, on all of them, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def ended(self, message: str) -> Ended:
        """The exception that ends all of them; only process 0 speaks."""
        return Ended(message if self.is_main else 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.count > 1 and (error is None or isinstance(error, Ended)):
            PartialState().destroy_process_group()
        if isinstance(error, RuntimeError) and any(words in str(error) for words in LOST):
            gone = str(error).partition(". ")[0]
            raise Ended(f"process {self.rank} ends because another one is gone, whose last words tell why ({gone})") from None


def _check_launched(count: int, device: torch.device) -> None:
    """What asked for several processes says so in the environment; training each for itself would go unnoticed."""
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if wanted != count:
        raise UserError(
            f"{wanted} processes were started, but on {device.type} they cannot train together; set runtime.device: cpu"
        )
    if {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys() and not any(name in os.environ for name in LAUNCHED):
        raise UserError(
            "accelerate launch --cpu starts one process, whatever --num_processes is; use `accelerate launch --multi_gpu "
            "--num_processes N` or torchrun, with runtime.device: cpu"
        )


@contextmanager
def _unsynchronised_shards(net: nn.Module) -> Iterator[None]:
    net.set_requires_gradient_sync(False)
    yield
    net.set_requires_gradient_sync(True)
