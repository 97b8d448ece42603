"""HPS v2.1 (arXiv 2306.09341) by the package hpsv2: its CLIP and transform, the cosine of picture and caption.

The package's own `score` reads the 2 GB checkpoint for every prompt, so the weights are put in here, once; they are a
pickle, of which only tensors are read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipeline.errors import UserError
from pipeline.evaluate.preference.package import load_package, version_of

PACKAGE, REPOSITORY, CHECKPOINT, ARCHITECTURE = "hpsv2", "xswu/HPSv2", "HPS_v2.1_compressed.pt", "ViT-H-14"


class HpsV2:
    """`checkpoint`: a file on this machine instead of the one on the hub."""

    def __init__(self, device: torch.device, checkpoint: Path | None = None) -> None:
        package = load_package("hpsv2", f"{PACKAGE}.img_score", PACKAGE)
        tokens = load_package("hpsv2", f"{PACKAGE}.src.open_clip", PACKAGE)
        file = checkpoint or _checkpoint()
        package.initialize_model()
        self.identity = {"package": PACKAGE, "version": version_of(PACKAGE), "checkpoint": CHECKPOINT}
        self._device = device
        self._model: Any = package.model_dict["model"].to(device)
        self._model.load_state_dict(torch.load(file, map_location=device, weights_only=True)["state_dict"])
        self._model.eval()
        self._transform = package.model_dict["preprocess_val"]
        self._tokenize = tokens.get_tokenizer(ARCHITECTURE)

    @torch.no_grad()
    def scores(self, files: Sequence[Path], captions: Sequence[str]) -> list[float]:
        pictures = []
        for file in files:
            with Image.open(file) as picture:
                pictures.append(self._transform(picture.convert("RGB")))
        output = self._model(torch.stack(pictures).to(self._device), self._tokenize(list(captions)).to(self._device))
        return (output["image_features"].float() * output["text_features"].float()).sum(1).tolist()  # unit vectors


def _checkpoint() -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        return Path(hf_hub_download(REPOSITORY, CHECKPOINT))
    except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(f"evaluation.preference: hpsv2: {CHECKPOINT} of {REPOSITORY} is not to be had ({error})") from error
