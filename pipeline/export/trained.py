"""Model folders out of a trained stage or an official checkpoint, and back."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.artifacts import read_json
from pipeline.config.schema import ModelRef
from pipeline.config.steps import TrainSlice
from pipeline.diffusion import EDM
from pipeline.errors import UserError
from pipeline.export.folder import load_model_folder, save_model_folder
from pipeline.export.official import export_official, import_official
from pipeline.model import MicroDiTConfig

OFFICIAL_VAE_FACTOR = 8  # image pixels a latent pixel of the VAEs that the official checkpoints were trained with
