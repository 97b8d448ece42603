"""Trains the tiny autoencoder: 8x smaller, 4 channels, at 32 and 64 pixels, on scenes of the split "train".

Three things make its latents easy for a small diffusion model: a KL term strong enough that the decoder forgives
small errors, no attention (a latent depends on its surroundings only), and an equivariance term after EQ-VAE
(https://arxiv.org/abs/2502.09509): latents averaged down 2x2 must decode to the image averaged down 2x2, so that
what is learnt on 32-pixel latents carries over to 64-pixel ones.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from pipeline.embedded.detector import score
from pipeline.embedded.training import images, matrices_and_others, optimise, pixels, rounded, scenes_of, write_card

TWO_OBJECT_SHARE = 0.4
KL_WEIGHT = 2e-3
ADAMW_PEAK, MUON_PEAK = 2e-3, 5e-3
# The first steps see 32-pixel images only: they cost a quarter, and what they teach holds at 64 pixels too.
COARSE_SHARE = 0.4
# Objects fill a twentieth of the image and carry four of the five attributes.
OBJECT_WEIGHT = 4.0


def build() -> AutoencoderKL:
    """An untrained autoencoder of about 450 thousand parameters."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 24, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        # One group: the narrow layers keep the colours of a flat image, which normalising channel by channel erases.
        norm_num_groups=1,
        sample_size=64,
        mid_block_add_attention=False,
    )
    _start_simple(model)
    return model


@torch.no_grad()
def _start_simple(model: AutoencoderKL) -> None:
    """Start as block averages up and down: residual branches at zero, resampling as copying, little noise."""
    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.zero_()
        elif isinstance(module, Upsample2D):
            torch.nn.init.dirac_(module.conv.weight)
        elif isinstance(module, Downsample2D):
            channels = torch.arange(len(module.conv.weight))
            module.conv.weight.zero_()
            module.conv.weight[channels, channels, :2, :2] = 0.25
    model.quant_conv.weight[model.config.latent_channels :] *= 0.1
    model.quant_conv.bias[model.config.latent_channels :] = -5.0


def train(out_folder: Path, seed: int = 0, steps: int = 6000, batch: int = 8) -> None:
    """Train from scratch and save the model with its card in `out_folder`."""
    torch.manual_seed(seed)
    model = build().to(memory_format=torch.channels_last)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        px = 32 if step < COARSE_SHARE * steps else 64
        scene_pixels = pixels(scenes_of(seed, "train", step * batch, batch, TWO_OBJECT_SHARE), px)
        return batch_loss(model, scene_pixels.contiguous(memory_format=torch.channels_last))

    parameters = matrices_and_others([model])
    seconds = optimise("vae", *parameters, loss_at, steps, MUON_PEAK, ADAMW_PEAK)
    finish(model, Path(out_folder), seed, steps, batch, seconds)


def batch_loss(model: AutoencoderKL, batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of images [B, 3, px, px] and numbers to show; 64-pixel images are also learnt at half their size."""
    posterior = model.encode(batch).latent_dist
    latent = posterior.sample()
    reconstruction = reconstruction_loss(model.decode(latent).sample, batch)
    kl = posterior.kl().mean() / latent[0].numel()
    shown = {"px": batch.shape[-1], "reconstruction": reconstruction.item(), "kl": kl.item()}
    shown["spread"] = posterior.std.mean().item()
    loss = reconstruction + KL_WEIGHT * kl
    if batch.shape[-1] == 64:
        half = coarse_loss(model, latent, F.avg_pool2d(batch, 2))
        return loss + half, {**shown, "half": half.item()}
    return loss, shown


def coarse_loss(model: AutoencoderKL, latent: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Loss of half-size images, from their own latents and from the averaged latents of the full-size ones."""
    posterior = model.encode(coarse).latent_dist
    small = torch.cat([posterior.sample(), F.avg_pool2d(latent, 2)])
    kl = posterior.kl().mean() / small[0].numel()
    return reconstruction_loss(model.decode(small).sample, torch.cat([coarse, coarse])) + KL_WEIGHT * kl


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 plus L2, heavier on objects: on everything that differs from the top left pixel."""
    objects = (target - target[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.1
    error = output - target
    return ((1 + OBJECT_WEIGHT * objects) * (error.abs() + error.square())).mean()


@torch.no_grad()
def finish(model: AutoencoderKL, folder: Path, seed: int, steps: int, batch: int, seconds: float) -> None:
    """Choose the scaling factor, save, measure and write the card."""
    latents = model.encode(pixels(scenes_of(seed, "train", 0, 512, 0.25), 64)).latent_dist.mode()
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    model.save_pretrained(folder)
    data = f"scenes of the split train, {TWO_OBJECT_SHARE:.0%} with two objects, at 32 and 64 pixels"
    write_card(
        folder, name="embedded:vae", model="AutoencoderKL, factor 8, 4 channels", data=data, seed=seed,
        steps=steps, batch=batch, training_seconds=round(seconds), parameters=model.num_parameters(),
        quality={f"{px}px": rounded(measure(model, seed, px)) for px in (32, 64)},
    )  # fmt: skip


@torch.no_grad()
def measure(model: AutoencoderKL, seed: int, px: int, count: int = 400) -> dict[str, Any]:
    """PSNR, detector accuracies and latent statistics on `count` held-out scenes of `px` pixels."""
    scenes = scenes_of(seed, "heldout", 0, count, 0.25)
    original = pixels(scenes, px)
    posterior = model.encode(original).latent_dist
    latents = posterior.mode() * model.config.scaling_factor
    output = model.decode(posterior.mode()).sample.clamp(-1, 1)
    psnr = 10 * torch.log10(4 / (output - original).square().mean((1, 2, 3)))
    return {
        "images": count,
        "psnr_db": psnr.mean().item(),
        "accuracy": score(images(output), [scene.attributes() for scene in scenes]),
        "scaled_latent_mean": [round(v, 3) for v in latents.mean((0, 2, 3)).tolist()],
        "scaled_latent_std": [round(v, 3) for v in latents.std((0, 2, 3)).tolist()],
        "scaled_posterior_std": (posterior.std.mean() * model.config.scaling_factor).item(),
    }
