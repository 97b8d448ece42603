"""The processes that train together: one, or those that torchrun started (data parallel, arXiv 2006.15704)."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import Ended, UserError
from pipeline.runtime import pick_device


class Processes:
    """Who this process is among them, and what they agree on. Only process 0 (`is_main`) writes."""

    def __init__(self, wanted_device: str) -> None:
        device = pick_device(wanted_device)
        state = PartialState(cpu=device.type == "cpu")
        self.count, self.rank = state.num_processes, state.process_index
        self.device = state.device if self.count > 1 else device
        self.is_main = self.rank == 0
        # Agreeing on a stop at every step must not wait for the GPU: these few bytes go between hosts.
        self._hosts = dist.new_group(backend="gloo") if self.count > 1 else None

    def share(self, batch_images: int) -> tuple[int, int]:
        """First sample and number of samples of this process in a global batch; the shares are contiguous.

        Raises: UserError if a process would be left without a sample.
        """
        if batch_images < self.count:
            raise UserError(f"batch_images: {batch_images} images cannot be shared by {self.count} processes; start fewer")
        first, end = (batch_images * rank // self.count for rank in (self.rank, self.rank + 1))
        return first, end - first

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, its gradients averaged over the processes by the backward pass."""
        if self.count == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def unsynchronised(self, net: nn.Module) -> AbstractContextManager:
        """A context in which gradients add up locally, for all microbatches but the last."""
        return net.no_sync() if self.count > 1 else nullcontext()

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

    def end(self) -> None:
        """Leave the others."""
        if self.count > 1:
            PartialState().destroy_process_group()
