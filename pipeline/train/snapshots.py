"""Snapshots of power-function averages, from which averages of any width are put together after training.

They lie beside the checkpoints, in float16, and are not among those of which only the last few are kept.
"""

import re
from pathlib import Path

import torch

from pipeline.artifacts import atomic, check_room
from pipeline.engine.posthoc import Profile
from pipeline.train.checkpoint import Tensors, save_tensors

NAME = re.compile(r"(\d{12})-([\d.]+)\.safetensors")


class Snapshots:
    """The snapshots of one run. Those beyond `images` belong to a past that is done again, and are removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def cut(self, images: int) -> None:
        for file, profile in self.all():
            if profile.images > images:
                file.unlink()

    def all(self) -> list[tuple[Path, Profile]]:
        """Files with the images and width of each, in order."""
        found = [(file, NAME.fullmatch(file.name)) for file in sorted(self.folder.glob("*.safetensors"))]
        return [(file, Profile(int(match[1]), float(match[2]))) for file, match in found if match]

    def save(self, images: int, width: float, average: Tensors) -> None:
        """Write one, if it is not there yet. Raises: UserError if the disk is full."""
        file = self.folder / f"{images:012d}-{width!r}.safetensors"
        if file.exists():
            return
        half = {name: tensor.to(torch.float16) for name, tensor in average.items()}
        self.folder.mkdir(exist_ok=True)
        check_room(file, sum(tensor.nbytes for tensor in half.values()))
        with atomic(file) as temporary:
            save_tensors(half, temporary)
