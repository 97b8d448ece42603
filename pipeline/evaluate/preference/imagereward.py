"""ImageReward v1.0 (arXiv 2304.05977) by the package image-reward, which fetches its own weights from the hub."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.errors import UserError
from pipeline.evaluate.preference.package import load_package, version_of

PACKAGE, MODULE, MODEL = "image-reward", "ImageReward", "ImageReward-v1.0"


class ImageReward:
    """Scores a picture at a time, as the package does."""

    def __init__(self, device: torch.device) -> None:
        package = load_package("imagereward", MODULE, PACKAGE)
        self.identity = {"package": PACKAGE, "version": version_of(PACKAGE), "checkpoint": MODEL}
        try:
            self._model = package.load(MODEL, device=str(device))
        except (OSError, RuntimeError) as error:
            raise UserError(f"evaluation.preference: imagereward: {MODEL} is not to be had ({error})") from error

    @torch.no_grad()
    def scores(self, files: Sequence[Path], captions: Sequence[str]) -> list[float]:
        return [float(self._model.score(text, str(file))) for file, text in zip(files, captions, strict=True)]
