"""Trains the tiny autoencoder: 8x smaller, 4 channels, at 32 and 64 pixels, on scenes of the split "train".

Three things make its latents easy for a small diffusion model: a KL term strong enough that the decoder forgives
small errors, no attention (a latent depends on its surroundings only), and an equivariance term after EQ-VAE
(https://arxiv.org/abs/2502.09509): latents averaged down 2x2 must decode to the image averaged down 2x2, so that
what is learnt on 32-pixel latents carries over to 64-pixel ones.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from pipeline.embedded.training import images, optimise, pixels, rounded, scenes_of, write_card

TWO_OBJECT_SHARE = 0.4
KL_WEIGHT = 2e-3
PEAK = 2e-3


def build() -> AutoencoderKL:
    """An untrained autoencoder of about 450 thousand parameters."""
    return AutoencoderKL(
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


def train(out_folder: Path, seed: int = 0, steps: int = 2000, batch: int = 16) -> None:
    """Train from scratch and save the model with its card in `out_folder`."""
    torch.manual_seed(seed)
    model = build().to(memory_format=torch.channels_last)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        fine = pixels(scenes_of(seed, "train", step * batch, batch, TWO_OBJECT_SHARE), 64)
        return batch_loss(model, fine.contiguous(memory_format=torch.channels_last))

    seconds = optimise("vae", model.parameters(), loss_at, steps, PEAK)
    finish(model, Path(out_folder), seed, steps, batch, seconds)


def batch_loss(model: AutoencoderKL, fine: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of images [B, 3, 64, 64]: at full size, at half size, and of averaged latents at half size."""
    coarse = F.avg_pool2d(fine, 2)
    at_fine, at_coarse = (model.encode(x).latent_dist for x in (fine, coarse))
    latent = at_fine.sample()
    recon_fine = reconstruction_loss(model.decode(latent).sample, fine)
    small = torch.cat([at_coarse.sample(), F.avg_pool2d(latent, 2)])
    recon_coarse = reconstruction_loss(model.decode(small).sample, torch.cat([coarse, coarse]))
    kl = (at_fine.kl().mean() / latent[0].numel() + at_coarse.kl().mean() / small[0].numel()) / 2
    shown = {"fine": recon_fine.item(), "coarse": recon_coarse.item(), "kl": kl.item()}
    shown["spread"] = at_fine.std.mean().item()
    return recon_fine + recon_coarse + KL_WEIGHT * kl, shown


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 plus L2, three times heavier near the outlines: they are few pixels and carry the shape."""
    local = F.avg_pool2d(target, 3, 1, 1, count_include_pad=False)
    edges = ((target - local).abs().amax(1, keepdim=True) > 0.05).float()
    error = output - target
    return ((1 + 2 * edges) * (error.abs() + error.square())).mean()


@torch.no_grad()
def finish(model: AutoencoderKL, folder: Path, seed: int, steps: int, batch: int, seconds: float) -> None:
    """Choose the scaling factor, measure, and save."""
    latents = model.encode(pixels(scenes_of(seed, "train", 0, 256, 0.25), 64)).latent_dist.mode()
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    model.save_pretrained(folder)
    print(latents.std(), latents.mean((0,2,3)), latents.std((0,2,3)))
    from pipeline.embedded.scenes import render
    for px in (32, 64):
        x = pixels(scenes_of(seed, "heldout", 0, 256, 0.25), px)
        y = model.decode(model.encode(x).latent_dist.mode()).sample
        print(px, 'psnr', (10*torch.log10(4/((x-y.clamp(-1,1))**2).mean((1,2,3)))).mean())
        torch.save(y,f'/tmp/rec{px}.pt')
