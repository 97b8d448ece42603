"""EDM diffusion (arXiv 2206.00364): loss, sampler and addressed noise. Needs torch and nothing else."""

from pipeline.diffusion.edm import EDM, Loss, Network, Preconditioning, patch_means
from pipeline.diffusion.noise import normals, uniforms
from pipeline.diffusion.samplers import Denoiser, guided, heun, sample, sigma_grid

__all__ = [
    "EDM",
    "Denoiser",
    "Loss",
    "Network",
    "Preconditioning",
    "guided",
    "heun",
    "normals",
    "patch_means",
    "sample",
    "sigma_grid",
    "uniforms",
]
