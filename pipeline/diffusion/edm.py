"""EDM: preconditioning and training loss (Karras et al., arXiv 2206.00364, table 1 and equations 7 and 8)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

Network = Callable[..., Tensor]  # (x [B, C, H, W], c_noise [B], text, ids_keep) -> [B, C, H, W]


class Preconditioning(NamedTuple):
    """D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise); each has the shape of σ."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Loss(NamedTuple):
    """The training loss of a batch and what a log by noise level needs."""

    mean: Tensor  # [], to be differentiated
    per_image: Tensor  # [B], weighted, detached
    error: Tensor  # [B], mean squared error of the denoised latents before weighting, detached
    sigma: Tensor  # [B]


@dataclass(frozen=True)
class EDM:
    """The constants of the diffusion process. Raises ValueError for values that define none."""

    sigma_data: float = 0.9  # standard deviation of the latents
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    p_mean: float = -0.6  # mean of ln σ in training
    p_std: float = 1.2

    def __post_init__(self) -> None:
        for name in ("sigma_data", "sigma_min", "rho", "p_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"diffusion: {name} is {getattr(self, name)}; give a number above 0")
        if not self.sigma_max > self.sigma_min:
            raise ValueError(f"diffusion: sigma_max is {self.sigma_max}; give a number above sigma_min ({self.sigma_min})")

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EDM":
        """Raises ValueError naming an unknown key; keys left out take their defaults."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"diffusion: unknown key {unknown[0]!r}; known keys: {', '.join(known)}")
        return cls(**values)

    def precondition(self, sigma: Tensor) -> Preconditioning:
        """sigma of any shape -> the four factors of that shape."""
        data = self.sigma_data
        norm = (sigma**2 + data**2).sqrt()
        return Preconditioning(data**2 / (sigma**2 + data**2), sigma * data / norm, 1 / norm, sigma.log() / 4)

    def training_sigma(self, normal: Tensor) -> Tensor:
        """Standard normals [B] -> noise levels [B] with ln σ ~ N(p_mean, p_std²)."""
        return (normal * self.p_std + self.p_mean).exp()

    def weight(self, sigma: Tensor) -> Tensor:
        """(σ² + σd²) / (σ·σd)², which makes the effective target unit variance at every level."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def denoise(self, net: Network, x: Tensor, sigma: Tensor, text: Any, ids_keep: Tensor | None = None) -> Tensor:
        """D(x; σ): noisy x [B, C, H, W], sigma [B] -> denoised [B, C, H, W].

        `text` is whatever `net` takes. Patches that ids_keep drops come out as c_skip·x.
        """
        *factors, c_noise = self.precondition(sigma)
        c_skip, c_out, c_in = (factor[:, None, None, None] for factor in factors)
        return c_skip * x + c_out * net(c_in * x, c_noise, text, ids_keep)

    def loss(
        self,
        net: Network,
        latents: Tensor,
        text: Any,
        normal: Tensor,
        noise: Tensor,
        patch_size: int,
        ids_keep: Tensor | None = None,
    ) -> Loss:
        """Loss of latents [B, C, H, W] for standard normals `normal` [B] and `noise` [B, C, H, W].

        Mean over channels, inside each patch, over the kept patches of an image, then over images.
        """
        sigma = self.training_sigma(normal)
        noisy = latents + noise * sigma[:, None, None, None]
        denoised = self.denoise(net, noisy, sigma, text, ids_keep)
        weighted = self.weight(sigma)[:, None, None, None] * (denoised - latents) ** 2
        per_image = patch_means(weighted, patch_size, ids_keep).mean(dim=1)
        error = per_image.detach() / self.weight(sigma)
        return Loss(per_image.mean(), per_image.detach(), error, sigma)


def patch_means(values: Tensor, patch_size: int, ids_keep: Tensor | None = None) -> Tensor:
    """values [B, C, H, W] -> mean of each patch [B, T] row-major, or of those in ids_keep [B, K]."""
    means = F.avg_pool2d(values.mean(dim=1), patch_size).flatten(1)
    return means if ids_keep is None else means.gather(1, ids_keep)
