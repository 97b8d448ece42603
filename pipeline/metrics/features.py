"""The feature networks under FID and KID, and images to arrays of features.

clean-fid resizes (Parmar et al., arXiv 2104.11222): to the network's input size, in floating point, after
antialiasing in mode `clean`. Its Inception is handed a file whose hash is checked: by itself clean-fid would load
whatever lies under a fixed name in a folder that everybody can write to.
"""

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.artifacts import sha256_file
from pipeline.config.running import Downloads
from pipeline.errors import UserError
from pipeline.frozen.models import identity
from pipeline.ledger import Unusable

if TYPE_CHECKING:
    import torch

    from pipeline.download.retry import Retry
    from pipeline.frozen.clip import Clip

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION_FILE}"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_PX, INCEPTION_WIDTH = 299, 2048
INCEPTION_MOST_BYTES = 200_000_000  # it has some 95 MB
RESIZERS = {"clean": ("PIL", "bicubic"), "legacy_pytorch": ("PyTorch", "bilinear")}  # library and filter of a mode


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network with pooled features. `extract` maps pixels [B, 3, px, px] float32 in 0…255 to [B, width]."""

    name: str
    identity: str  # hash of the weights, or the hub's commit
    px: int
    width: int
    extract: "Callable[[torch.Tensor], torch.Tensor]"


def cache_folder() -> Path:
    """Where downloaded files lie: $SHOESTRING_CACHE, or `shoestring` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SHOESTRING_CACHE") or Path(base) / "shoestring")


def inception_file(downloads: Downloads | None = None, retry: "Retry | None" = None) -> Path:
    """The TorchScript Inception of StyleGAN2-ADA, which clean-fid uses: from the cache folder, fetched to there if absent.

    Raises: UserError if it is not to be had or not the file that it should be; nothing is read from it before its hash
    is right.
    """
    from pipeline.download.remote import download
    from pipeline.download.retry import PATIENT

    file = cache_folder() / INCEPTION_FILE
    try:
        download(INCEPTION_URL, file, downloads or Downloads(), retry or PATIENT, INCEPTION_SHA256, INCEPTION_MOST_BYTES)
    except Unusable as error:
        raise UserError(
            f"evaluation.features: inception needs {file}, and {INCEPTION_URL} could not be fetched "
            f"({error.reason}: {error.detail}); put it there by hand, or point SHOESTRING_CACHE at the folder that has it"
        ) from error
    if (found := sha256_file(file)) != INCEPTION_SHA256:
        raise UserError(f"{file}: sha256 is {found}, not {INCEPTION_SHA256}; delete it and run again, {INCEPTION_URL} has it")
    return file


def inception(device: "torch.device", downloads: Downloads | None = None) -> FeatureNetwork:
    """clean-fid's Inception. Both resizing modes use these weights, which the legacy one has in another format."""
    file = inception_file(downloads)
    from cleanfid.inception_torchscript import InceptionV3W

    network = InceptionV3W(str(file.parent), download=False, resize_inside=False).to(device).eval()
    return FeatureNetwork("inception", INCEPTION_SHA256, INCEPTION_PX, INCEPTION_WIDTH, network)


def clip_tower(ref: str, clip: "Clip") -> FeatureNetwork:
    """The image tower of a CLIP loaded from `ref`; the features are its projected embeddings, not normalised.

    CLIP-FID (Kynkäänniemi et al., arXiv 2203.06026) is the FID of them.
    """
    known = identity(ref)
    return FeatureNetwork(
        ref, known.get("sha256") or known["revision"], clip.size, clip.width, lambda pixels: clip.image_features(pixels / 255)
    )


def resizer(mode: str, px: int) -> Callable[[np.ndarray], np.ndarray]:
    """clean-fid's function from an image [H, W, 3] uint8 to [px, px, 3] float32 in 0…255."""
    from cleanfid.resize import make_resizer

    library, kernel = RESIZERS[mode]
    with warnings.catch_warnings():  # its legacy mode switches off every warning of the process
        return make_resizer(library, False, kernel, (px, px))


def features(
    network: FeatureNetwork,
    images: Iterable[np.ndarray],
    resize: str,
    device: "torch.device",
    batch: int = 64,
    on_batch: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Images [H, W, 3] uint8 of any sizes to features [N, width] float32. on_batch(images) reports progress."""
    import torch

    function, stream, rows = resizer(resize, network.px), iter(images), []
    with torch.inference_mode(), ThreadPoolExecutor() as pool:
        while group := list(islice(stream, batch)):
            pixels = np.stack(list(pool.map(function, group))).transpose(0, 3, 1, 2)
            rows.append(network.extract(torch.from_numpy(np.ascontiguousarray(pixels)).float().to(device)).float().cpu().numpy())
            if on_batch:
                on_batch(len(group))
    return np.concatenate(rows) if rows else np.empty((0, network.width), np.float32)
