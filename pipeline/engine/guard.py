"""Which steps are taken: decided on the device, so that no step waits for the host."""

import math

import torch
from torch import Tensor

MEMORY = 0.98  # of the running mean of log gradient norms: about fifty steps
HISTORY = 50  # steps before a norm can be called unusual


class Guard:
    """Skips a step whose gradient norm is not finite or is `factor` times the usual one.

    The usual norm is a geometric running mean of the norms of the steps taken. The state is three numbers.
    """

    def __init__(self, factor: float, device: torch.device) -> None:
        self._factor = factor
        self._state = torch.zeros(3, dtype=torch.float64, device="cpu").to(_holds_float64(device))  # log mean, its weight, steps

    @torch.no_grad()
    def skips(self, norm: Tensor) -> Tensor:
        """Gradient norm [] -> 1.0 to skip the step, 0.0 to take it; float32 [] on the norm's device."""
        mean, weight, steps = self._state
        log_norm = norm.to(self._state).log()
        usual = mean / weight.clamp(min=1e-12)
        unusual = (steps >= HISTORY) & (log_norm > usual + math.log(self._factor))
        taken = norm.to(self._state).isfinite() & ~unusual
        moved = torch.stack([MEMORY * mean + (1 - MEMORY) * log_norm, MEMORY * weight + 1 - MEMORY, steps + 1])
        # A norm of exactly 0 has no logarithm: the step is harmless and leaves the history alone.
        self._state = torch.where(taken & log_norm.isfinite(), moved, self._state)
        return (~taken).to(torch.float32).to(norm.device)

    def state(self) -> list[float]:
        """For a checkpoint; exact."""
        return self._state.tolist()

    def load(self, state: list[float]) -> None:
        self._state = torch.tensor(state, dtype=torch.float64).to(self._state.device)


def _holds_float64(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device
