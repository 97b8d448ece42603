"""Trained weights in the formats that other programs read."""

from pipeline.export.folder import ModelFolder, load_model_folder, save_model_folder
from pipeline.export.official import export_official, import_official

__all__ = ["ModelFolder", "export_official", "import_official", "load_model_folder", "save_model_folder"]
