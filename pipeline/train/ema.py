"""An exponential moving average of the weights, kept as a model of its own so that it can be sampled from."""

import torch

from pipeline.model import MicroDiT


class Ema:
    """After every step: average += (1 - decay) · (weights - average). Before `start_images` it just follows the weights."""

    def __init__(self, model: MicroDiT, decay: float, start_images: int) -> None:
        copies = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.model = MicroDiT.from_state(model.config, copies).requires_grad_(False).eval()
        self._decay, self._start_images = decay, start_images
        self._averages, self._weights = list(self.model.parameters()), list(model.parameters())

    def decay(self, images: int) -> float:
        """The decay of the step that brings the stage to `images` images seen."""
        return 0.0 if images <= self._start_images else self._decay

    @torch.no_grad()
    def update(self, images: int) -> None:
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay(images))
