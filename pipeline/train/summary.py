"""summary.json: what a finished stage is, where it came from and what it cost."""

import platform
from importlib.metadata import version
from typing import Any

import torch

from pipeline.artifacts import Manifest
from pipeline.config.steps import TrainSlice
from pipeline.fingerprint import digest, git_commit
from pipeline.model import parameter_count, training_flops
from pipeline.runtime import device_name
from pipeline.train.network import Parent
from pipeline.train.objective import Objective
from pipeline.train.processes import Processes


def fingerprint_of(slice_: TrainSlice, manifest: Manifest, parent: Parent | None) -> str:
    """What decides the weights of a stage: its result keys, the data, the parent. No times, paths or devices."""
    origin = parent.fingerprint if parent else None
    return digest({"slice": slice_.results(), "manifest": manifest.samples_digest, "parent": origin})


def summary(
    slice_: TrainSlice,
    manifest: Manifest,
    parent: Parent | None,
    objective: Objective,
    processes: Processes,
    seconds: dict[str, float],
    lines: list[dict[str, Any]],
) -> dict[str, Any]:
    """`seconds` by activity and the `lines` of metrics.jsonl, over all runs of the stage."""
    stage, config = slice_.stage, objective.config
    return {
        "stage": slice_.name,
        "fingerprint": fingerprint_of(slice_, manifest, parent),
        "parent": parent.fingerprint if parent else None,
        "manifest": manifest.samples_digest,
        "config": slice_.results(),
        "model": config.to_dict(),
        "diffusion": objective.edm.to_dict(),
        "vae": slice_.vae,
        "text_encoder": slice_.text_encoder,
        "parameters": parameter_count(config),
        "images_seen": stage.images,
        "images_seen_total": stage.images + (parent.images_seen_total if parent else 0),
        "loss": {"first": lines[0]["loss"], "last": lines[-1]["loss"]},
        "training_flops": training_flops(config, stage.mask_ratio) * stage.images,
        "seconds": seconds,
        "images_per_second": round(stage.images / seconds["training"], 2),
        "device": device_name(processes.device),
        "device_hours": round(sum(seconds.values()) * processes.count / 3600, 6),
        "precision": str(objective.precision).removeprefix("torch."),
        "processes": processes.count,
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "accelerate": version("accelerate")},
    }
