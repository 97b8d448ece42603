"""summary.json: what a finished stage is, where it came from and what it cost."""

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from pipeline.config.steps import TrainSlice
from pipeline.dataset import Manifest
from pipeline.fingerprint import digest, git_commit
from pipeline.model import parameter_count, training_flops
from pipeline.runtime import device_name
from pipeline.train.buckets import account, bucket_tokens
from pipeline.train.network import Parent

if TYPE_CHECKING:
    from pipeline.train.stage import Training


def fingerprint_of(slice_: TrainSlice, manifest: Manifest, parent: Parent | None) -> str:
    """What decides the weights of a stage: its result keys, the data, the parent. No times, paths or devices."""
    origin = parent.fingerprint if parent else None
    return digest({"slice": slice_.results(), "manifest": manifest.samples_digest, "parent": origin})


def summary(training: "Training") -> dict[str, Any]:
    """Everything over all runs of the stage."""
    slice_, stage, manifest, parent = training.slice, training.stage, training.manifest, training.parent
    objective, losses = training.objective, [line["loss"] for line in training.metrics.lines if line.get("loss") is not None]
    return {
        "stage": slice_.name,
        "fingerprint": fingerprint_of(slice_, manifest, parent),
        "parent": parent.fingerprint if parent else None,
        "manifest": manifest.samples_digest,
        "config": slice_.results(),
        "model": objective.config.to_dict(),
        "diffusion": objective.edm.to_dict(),
        "vae": slice_.vae,
        "text_encoder": slice_.text_encoder,
        "parameters": parameter_count(objective.config),
        "images_seen": stage.images,
        "images_seen_total": stage.images + (parent.images_seen_total if parent else 0),
        "loss": {"first": losses[0], "last": losses[-1]} if losses else None,
        "best": training.state.best,
        "best_by_fid": training.best.point(),
        "skipped_steps": training.skips.total,
        **_buckets(training),
        **_cost(training),
        "device": device_name(training.processes.device),
        "precision": str(objective.precision).removeprefix("torch."),
        "processes": training.processes.count,
        "parallel": "fsdp" if training.processes.sharded else "ddp",
        "microbatch": training.learner.microbatch,
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "accelerate": version("accelerate")},
    }


def _buckets(training: "Training") -> dict[str, Any]:
    """What became of the samples of each bucket, if there are any."""
    order = training.samples.buckets
    return {"buckets": account(order, training.manifest, training.stage.images)} if order else {}


def _training_flops(training: "Training") -> float:
    """Of all images that were seen, each by its own number of tokens."""
    order, stage, config = training.samples.buckets, training.stage, training.objective.config
    if order is None:
        return training.speed.flops * stage.images
    tokens = bucket_tokens(training.manifest, config.patch_size)
    each = [training_flops(config, stage.mask_ratio, count) for count in tokens]
    return sum(flops * seen for flops, seen in zip(each, order.seen(stage.images).tolist(), strict=True))


def _cost(training: "Training") -> dict[str, Any]:
    """Time, throughput and money, beside those that the stage was planned with."""
    seconds, images, speed = training.clock.so_far(), training.stage.images, training.speed
    rate = images / seconds["training"]
    return {
        "training_flops": _training_flops(training),
        "seconds": seconds,
        "images_per_second": round(rate, 2),
        "share_of_peak": speed.share_of_peak(rate),
        "peak": {"tflops": round(speed.peak.flops / 1e12, 3), "source": speed.peak.source},
        **speed.spent(seconds),
        "plan": speed.plan(images),
    }
