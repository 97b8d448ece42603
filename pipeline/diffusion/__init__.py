"""EDM diffusion (arXiv 2206.00364): loss, samplers and addressed noise. Needs torch and nothing else."""

from pipeline.diffusion.edm import EDM, Loss, Network, Preconditioning, patch_means
from pipeline.diffusion.noise import normals, uniforms
from pipeline.diffusion.samplers import SAMPLERS, Denoiser, denoiser_calls, dpmpp_2m, euler, guided, heun, sample, sigma_grid

__all__ = [
    "EDM",
    "SAMPLERS",
    "Denoiser",
    "Loss",
    "Network",
    "Preconditioning",
    "denoiser_calls",
    "dpmpp_2m",
    "euler",
    "guided",
    "heun",
    "normals",
    "patch_means",
    "sample",
    "sigma_grid",
    "uniforms",
]
