"""The frozen autoencoder between pixels and latents: AutoencoderKL, AutoencoderTiny or AutoencoderDC of diffusers."""

import torch
from torch import Tensor

from pipeline.frozen.families import AUTOENCODERS, autoencoder_dtype
from pipeline.frozen.models import load_weights, locate


class Vae:
    """`channels` of a latent, `factor` = pixels a latent pixel spans, `scaling` = what latents are multiplied by after
    `shift` was taken off, all from the model's config. It computes in `dtype`."""

    def __init__(self, model: torch.nn.Module) -> None:
        config = model.config
        self._model = model
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.channels: int = config.latent_channels
        # AutoencoderTiny has block_out_channels too: those of its decoder.
        stages = config.get("encoder_block_out_channels") or config.block_out_channels
        self.factor: int = 2 ** (len(stages) - 1)
        self.scaling: float = config.scaling_factor
        self.shift: float = config.get("shift_factor") or 0.0
        # latent = (z - shift) · gain: one factor, a shift in newer models, or a mean and spread for each channel.
        # AutoencoderTiny's latent_magnitude and latent_shift are for storing latents as bytes and have no part in this.
        self._shift = self._per_channel(config.get("latents_mean") or self.shift)
        self._gain = self.scaling / self._per_channel(config.get("latents_std") or 1.0)

    def _per_channel(self, value: float | list[float]) -> Tensor:
        return torch.as_tensor(value, device=self.device, dtype=torch.float32).reshape(1, -1, 1, 1)

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] to latents [B, C, h, w] float32.

        One sample of the posterior, drawn with the given standard normals [B, C, h, w], so that a latent does not depend
        on its batch; without them the posterior's mean. An autoencoder without a posterior has one latent an image.
        """
        output = self._model.encode(images.to(self.device, self.dtype))
        return (self._chosen(output, noise).float() - self._shift) * self._gain

    def _chosen(self, output: object, noise: Tensor | None) -> Tensor:
        if not AUTOENCODERS[type(self._model).__name__]:
            return output.latents if hasattr(output, "latents") else output.latent
        posterior = output.latent_dist
        if noise is None:
            return posterior.mean
        return posterior.mean.float() + (0.5 * posterior.logvar.float()).exp() * noise.to(self.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to images [B, 3, H, W] float32 in [0, 1]."""
        z = latents.to(self.device, torch.float32) / self._gain + self._shift
        return (self._model.decode(z.to(self.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)


def load_vae(ref: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Vae:
    """`dtype`: what to compute in, unless the config asks for float32 (`families.autoencoder_dtype`).

    Raises: UserError if the reference leads to no autoencoder that is known here.
    """
    place = locate(ref)
    if place.class_name not in AUTOENCODERS:
        raise place.fault(f"is a {place.class_name}; models.vae takes {', '.join(AUTOENCODERS)} of diffusers")
    import diffusers  # brings transformers along: seconds

    chosen = getattr(torch, autoencoder_dtype(place, str(dtype).removeprefix("torch.")))
    model = load_weights(place, getattr(diffusers, place.class_name), device, chosen)
    # Convolutions of tensor cores read channels last: the same numbers without a copy before each.
    return Vae(model.to(memory_format=torch.channels_last) if device.type == "cuda" else model)
