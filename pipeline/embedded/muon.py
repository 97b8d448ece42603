"""Muon (https://kellerjordan.github.io/posts/muon): momentum whose update matrices are made orthogonal.

On the small convolutions of the autoencoder it needs less than half the steps of AdamW.
"""

from collections.abc import Iterable

import torch

# Coefficients of the quintic iteration from the source above; they drive all singular values into 0.7 ... 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions, taken as matrices [outputs, everything else]."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight against its orthogonalised Nesterov momentum."""
        for group in self.param_groups:
            for weight in (w for w in group["params"] if w.grad is not None):
                memory = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                memory.mul_(group["momentum"]).add_(weight.grad)
                update = orthogonal(weight.grad.add(memory, alpha=group["momentum"]).flatten(1))
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                weight.add_(update.reshape(weight.shape), alpha=-group["lr"] * scale)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The (nearly) orthogonal matrix [rows, columns] nearest to the direction of `matrix`, by Newton-Schulz."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.T if tall else x
