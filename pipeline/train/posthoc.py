"""An average of any width, put together from the snapshots of a finished stage: `python -m pipeline ema`."""

from pathlib import Path
from typing import Any

import torch

from pipeline.artifacts import atomic, read_json, write_json
from pipeline.engine.posthoc import Profile, coefficients, combine
from pipeline.errors import UserError
from pipeline.fingerprint import digest
from pipeline.model import MicroDiT, MicroDiTConfig
from pipeline.train.checkpoint import Tensors, save_tensors
from pipeline.train.network import read_tensors
from pipeline.train.snapshots import Snapshots


def run(stage: Path, width: float, images: int | None, work: Path | None, out: Path) -> None:
    """Write `out` as a stage's folder for `model` and `evaluate`: ema.safetensors, and the summary with `posthoc_ema`.

    `width` is relative to the `images` seen in the stage, null: to the end. `work` holds the stage's checkpoints, null:
    where the workflow puts them.
    Raises: UserError if there are no snapshots, none at `images`, or no average has that width.
    """
    summary = _summary(stage)
    if out.resolve() == stage.resolve():
        raise UserError(f"--out {out}: is the stage itself; name another folder")
    folder = (work or stage.parent.parent / "work" / "train" / stage.name) / summary["fingerprint"] / "snapshots"
    found = Snapshots(folder).all()
    if not found:
        raise UserError(f"{folder}: no snapshots of {stage}; it must be trained with posthoc_ema, for example [0.05, 0.1]")
    wanted = Profile(images or summary["images_seen"], width)
    try:
        factors = coefficients([profile for _, profile in found], wanted)
    except ValueError as error:
        raise UserError(f"{stage}: {error}") from error
    used = [(file, factor) for (file, _), factor in zip(found, factors, strict=True) if factor]
    combined = combine((read_tensors(file) for file, _ in used), [factor for _, factor in used])
    _write(out, combined | _buffers(stage, summary), _describe(summary, wanted, [file.name for file, _ in used]))


def _summary(stage: Path) -> dict[str, Any]:
    summary = read_json(stage / "summary.json")
    if missing := {"fingerprint", "model", "images_seen", "images_seen_total"} - set(summary):
        raise UserError(f"{stage / 'summary.json'}: not a stage's summary, it lacks {sorted(missing)[0]}; train that stage again")
    return summary


def _buffers(stage: Path, summary: dict[str, Any]) -> Tensors:
    """What is no weight stays as it is: snapshots hold it rounded to float16."""
    with torch.device("meta"):
        names = {name for name, _ in MicroDiT(MicroDiTConfig.from_dict(summary["model"])).named_buffers()}
    return {name: tensor for name, tensor in read_tensors(stage / "ema.safetensors").items() if name in names}


def _describe(summary: dict[str, Any], wanted: Profile, snapshots: list[str]) -> dict[str, Any]:
    """The stage's summary, as of the images of the average. Its fingerprint is one of its own."""
    average = {"stage": summary["fingerprint"], "width": wanted.width, "images": wanted.images, "snapshots": snapshots}
    seen = {name: summary[name] - summary["images_seen"] + wanted.images for name in ("images_seen", "images_seen_total")}
    return {**summary, **seen, "fingerprint": digest(average), "posthoc_ema": average}


def _write(out: Path, tensors: Tensors, summary: dict[str, Any]) -> None:
    (out / "summary.json").unlink(missing_ok=True)  # an old one must never stand beside new weights
    with atomic(out / "ema.safetensors") as temporary:
        save_tensors(tensors, temporary)
    write_json(out / "summary.json", summary)
