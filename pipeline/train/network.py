"""The network of a stage: its architecture from configuration and data, its first weights from the parent."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.artifacts import read_json
from pipeline.config.steps import TrainSlice
from pipeline.dataset import Bucket, Manifest
from pipeline.errors import UserError
from pipeline.frozen.models import content, identity, label
from pipeline.model import PRESETS, MicroDiT, MicroDiTConfig, at_resolution, kept_tokens, state_layout, weights_at


@dataclass(frozen=True)
class Parent:
    """The finished stage before this one."""

    folder: Path
    fingerprint: str
    images_seen_total: int

    @classmethod
    def read(cls, folder: Path | None) -> Self | None:
        """None stays None. Raises: UserError if the folder is no finished stage."""
        if folder is None:
            return None
        summary = read_json(folder / "summary.json")
        try:
            return cls(folder, summary["fingerprint"], summary["images_seen_total"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder}/summary.json: no stage's summary, {error} is missing; train that stage again") from error

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Raises: UserError naming the file if it cannot be read."""
        return read_tensors(self.folder / f"{name}.safetensors")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Copies in ordinary memory: a mapped file could be replaced, and its unaligned tensors may sum in another order."""
    try:
        return {name: tensor.clone() for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({error}); train that stage again") from error


def check_frozen(manifest: Manifest, name: str, ref: str) -> None:
    """Raises: UserError unless `ref`, of the configuration's models.{name}, is the model that encoded the data."""
    encoded_by = getattr(manifest, name)
    if content(identity(ref)) != content(encoded_by):
        raise UserError(
            f"models.{name}: {ref} is not what the samples of {manifest.path} were encoded with, {label(encoded_by)}; "
            "give that one, or encode again"
        )


def architecture(slice_: TrainSlice, manifest: Manifest) -> MicroDiTConfig:
    """Preset and overrides from the configuration; channels, text width and length from the data; the side of the
    latents at base_px is where positions are 0, 1, 2 …, and the stage's resolution is interpolated to it.

    Raises: UserError if these do not fit together.
    """
    channels, side, _ = manifest.latent_shape
    length, width = manifest.text_shape
    base_side, rest = divmod(side * slice_.base_px, slice_.stage.px)
    if rest:
        raise UserError(
            f"stages.{slice_.name}.px: latents of {slice_.stage.px} px have side {side}, so the first stage's "
            f"{slice_.base_px} px would have no whole side; choose a multiple"
        )
    from_data: dict[str, Any] = dict(input_size=base_side, in_channels=channels, caption_channels=width, caption_length=length)
    from_data["drop_text_padding"] = manifest.text_padding == "drop"
    try:
        base = replace(PRESETS[slice_.model.preset], **{**slice_.model.overrides(), **from_data})
        config = at_resolution(base, side)
        kept_tokens(config.num_tokens, slice_.stage.mask_ratio)
        for bucket in manifest.buckets:
            _check_bucket(bucket, config.patch_size, slice_.stage.mask_ratio)
    except ValueError as error:
        raise UserError(f"stages.{slice_.name}: {error}") from error
    if slice_.stage.mask_ratio and config.mask_mode == "none":
        raise UserError(f"stages.{slice_.name}.mask_ratio: {slice_.stage.mask_ratio}, but model.mask_mode is none; set either")
    return config


def _check_bucket(bucket: Bucket, patch_size: int, mask_ratio: float) -> None:
    """Raises: ValueError if it is not made of whole patches, or the mask keeps none of them."""
    if bucket.height % patch_size or bucket.width % patch_size:
        raise ValueError(
            f"latents of a bucket are {bucket.height}x{bucket.width}, no whole patches of {patch_size}; set models.bucket_step "
            "to a multiple of the autoencoder's factor times model.patch_size"
        )
    kept_tokens(bucket.height * bucket.width // patch_size**2, mask_ratio)


def starting_model(config: MicroDiTConfig, slice_: TrainSlice, parent: Parent | None) -> MicroDiT:
    """New weights from the seed, or the parent's with positions for this resolution.

    Raises: UserError naming a tensor of the parent that does not fit.
    """
    if parent is None:
        return MicroDiT(config, seed=slice_.seed)
    tensors = parent.tensors(slice_.stage.start_from)
    _check(parent.folder / f"{slice_.stage.start_from}.safetensors", config, tensors)
    return MicroDiT.from_state(config, weights_at(config, tensors))


def _check(file: Path, config: MicroDiTConfig, tensors: dict[str, Tensor]) -> None:
    layout = {name: list(shape) for name, shape in state_layout(config).items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(layout.keys() | found.keys()):
        positions_differ = name == "pos_embed" and name in found  # they are made anew for every resolution
        if layout.get(name) != found.get(name) and not positions_differ:
            here, there = (json.dumps(shapes.get(name)) for shapes in (layout, found))
            raise UserError(f"{file}: {name} has shape {there}, this stage needs {here}; `model` must be the same in all stages")
