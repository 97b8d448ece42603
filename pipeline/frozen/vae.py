"""The frozen autoencoder between pixels and latents (diffusers AutoencoderKL)."""

import torch
from torch import Tensor

from pipeline.frozen.models import load_weights, locate


class Vae:
    """`channels` of a latent, `factor` = pixels a latent pixel spans, `scaling` = what latents are multiplied by."""

    def __init__(self, model: torch.nn.Module) -> None:
        config = model.config
        self._model = model
        self.device: torch.device = model.device
        self.channels: int = config.latent_channels
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        self.scaling: float = config.scaling_factor
        # latent = (z - shift) · gain: one factor, a shift in newer models, or a mean and spread for each channel.
        self._shift = self._per_channel(config.latents_mean or config.shift_factor or 0.0)
        self._gain = self.scaling / self._per_channel(config.latents_std or 1.0)

    def _per_channel(self, value: float | list[float]) -> Tensor:
        return torch.as_tensor(value, device=self.device, dtype=torch.float32).reshape(1, -1, 1, 1)

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] and standard normals [B, C, h, w] to latents [B, C, h, w]: one sample of the
        posterior, drawn with the given normals, so that a latent does not depend on its batch."""
        posterior = self._model.encode(images.to(self.device)).latent_dist
        z = posterior.mean + posterior.std * noise.to(self.device)
        return (z - self._shift) * self._gain

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to images [B, 3, H, W] in [0, 1]."""
        z = latents.to(self.device, torch.float32) / self._gain + self._shift
        return (self._model.decode(z).sample / 2 + 0.5).clamp(0, 1)


def load_vae(ref: str, device: torch.device) -> Vae:
    """Raises: UserError if the reference leads to no AutoencoderKL."""
    place = locate(ref)
    if place.class_name != "AutoencoderKL":
        raise place.fault(f"is a {place.class_name}, models.vae takes a diffusers AutoencoderKL")
    from diffusers import AutoencoderKL  # brings transformers along: seconds

    return Vae(load_weights(place, AutoencoderKL, device))
