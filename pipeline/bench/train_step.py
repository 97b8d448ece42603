"""`bench train-step`: the step that training runs, on made-up data, against what the device could do.

FLOPs are counted as in the paper's recipe: 2 a multiply-add of every matmul and attention, three forward passes a step.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.bench.machine import facts, peak_memory_gb, pick_device, pick_precision
from pipeline.bench.matmuls import own_shapes_flops
from pipeline.bench.split import Split
from pipeline.diffusion import EDM
from pipeline.engine.batch import Batch
from pipeline.engine.compiled import compiled_graphs
from pipeline.engine.objective import Objective
from pipeline.engine.peak import datasheet, large_matmul, seconds, wait
from pipeline.engine.recipe import Recipe
from pipeline.engine.step import ATTENTION, Speed, TrainStep
from pipeline.model import PRESETS, MicroDiT, at_resolution, training_flops

PRICES = (2.00, 2.60, 3.75)  # dollars an H100-hour
SWITCHES = ("compile", "fused_adamw", "foreach_ema", "joint_text", "keep_freed")


@dataclass(frozen=True)
class PaperStage:
    """One line of the paper's recipe (arXiv 2407.15811, table 5)."""

    name: str
    px: int
    mask: float
    images: int


PAPER = (
    PaperStage("base_masked", 256, 0.75, 250_000 * 2048),
    PaperStage("base_full", 256, 0.0, 30_000 * 2048),
    PaperStage("fine_masked", 512, 0.75, 50_000 * 2048),
    PaperStage("fine_full", 512, 0.0, 5_000 * 2048),
)


def main(arguments: Sequence[str]) -> int:
    """Measure and print JSON."""
    options = _parser().parse_args(arguments)
    device = pick_device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    head = {**facts("train-step", arguments, device), "arch": options.arch}
    stages = PAPER if options.recipe else (PaperStage("", options.px, options.mask, 0),)
    results = [measure(stage, options, device) for stage in stages]
    result = {**head, **({"stages": results, "projection": project(results)} if options.recipe else results[0])}
    json.dump(result, sys.stdout, indent=1)
    print()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline bench train-step", description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", choices=sorted(PRESETS), default="xl2")
    parser.add_argument("--px", type=int, default=256, help="resolution in pixels; 8 pixels are one of the latent")
    parser.add_argument("--mask", type=float, default=0.75, help="share of the patches that is dropped")
    parser.add_argument("--batch", type=int, help="images an optimiser step; default 256 on a GPU, else 4")
    parser.add_argument("--microbatch", default="auto", help="images a forward pass, or auto: as many as fit")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--steps", type=int, default=None, help="steps to time; default 10 on a GPU, else 3")
    parser.add_argument("--attention", choices=("auto", *ATTENTION), help="kernel of attention; default as training takes")
    parser.add_argument("--with", dest="on", nargs="*", choices=SWITCHES, default=[], help="optimisations to switch on")
    parser.add_argument("--without", nargs="*", choices=SWITCHES, default=[], help="optimisations to switch off")
    parser.add_argument("--recipe", action="store_true", help="the paper's four stages, and the cost of the whole")
    return parser


def measure(stage: PaperStage, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One stage's step: throughput, shares of three peaks, memory, and where the time goes."""
    gpu = device.type == "cuda"
    precision = pick_precision(options.precision, device)
    step, batch = _step(stage, options, device, precision)
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    graphs = compiled_graphs()
    for _ in range(2):  # the first compiles
        step(batch, step.recipe.batch_images)
    split, steps = Split(step), options.steps or (10 if gpu else 3)
    with split.recording():
        elapsed = seconds(lambda: [step(batch, step.recipe.batch_images) for _ in range(steps)], device, repeats=1) / steps
    images, config = step.recipe.batch_images, step.objective.config
    reached = images * training_flops(config, stage.mask) / elapsed
    parts = split.seconds()
    return {
        "stage": stage.name or None,
        "px": stage.px,
        "mask": stage.mask,
        "images": stage.images,
        "batch": images,
        "microbatch": step.microbatch,
        "precision": str(precision).removeprefix("torch."),
        "switches": {**vars(step.speed)},
        "compiled_graphs": compiled_graphs() - graphs,
        "images_per_second": round(images / elapsed, 3),
        "tflops": round(reached / 1e12, 3),
        "share_of_peak": _shares(reached, step, stage, device, precision),
        "peak_memory_gb": peak_memory_gb(device),
        "time": {part: round(spent / sum(parts.values()), 4) for part, spent in parts.items()},
    }


def _step(
    stage: PaperStage, options: argparse.Namespace, device: torch.device, precision: torch.dtype
) -> tuple[TrainStep, Batch]:
    """The step and a batch in the host's memory, where the loader leaves it."""
    gpu = device.type == "cuda"
    config = at_resolution(PRESETS[options.arch], stage.px // 8)
    images = options.batch or (256 if gpu else 4)
    recipe = Recipe(stage.name or "bench", images, batch_images=images, mask_ratio=stage.mask, learning_rate=1e-6)
    speed = replace(Speed.of(device), **dict.fromkeys(options.on, True), **dict.fromkeys(options.without, False))
    speed = replace(speed, attention=options.attention) if options.attention else speed
    microbatch = None if options.microbatch == "auto" else int(options.microbatch)
    model = MicroDiT(config).to(device)
    step = TrainStep(model, Objective(EDM(), config, recipe, precision), images, speed=speed, microbatch=microbatch)
    latents = torch.randn(images, config.in_channels, config.input_size, config.input_size, dtype=torch.float16)
    text = torch.randn(images, config.caption_length, config.caption_channels, dtype=torch.float16)
    batch = Batch(torch.arange(images), latents, text)
    return step, Batch(*(tensor.pin_memory() for tensor in batch)) if gpu else batch


def _shares(reached: float, step: TrainStep, stage: PaperStage, device: torch.device, precision: torch.dtype) -> dict[str, Any]:
    """What was reached against the datasheet, a large matmul, and matmuls of the model's own shapes, all timed now."""
    wait(device)
    sheet = datasheet(device) if precision == torch.bfloat16 else None
    large = large_matmul(device, precision)
    own = own_shapes_flops(
        step.objective.config, step.microbatch, stage.mask, device, precision, 10 if device.type == "cuda" else 1
    )
    peaks = {"datasheet": sheet, "large_matmul": large, "own_matmuls": own}
    return {
        name: {"share": round(reached / flops, 4), "tflops": round(flops / 1e12, 3)} if flops else None
        for name, flops in peaks.items()
    }


def project(stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Device-hours and dollars for all images of the recipe at the speeds measured."""
    hours = sum(stage["images"] / stage["images_per_second"] / 3600 for stage in stages)
    flops = sum(stage["images"] / stage["images_per_second"] * stage["tflops"] for stage in stages) * 1e12
    dollars = {f"{price:.2f}": round(hours * price) for price in PRICES}
    return {"device_hours": round(hours, 1), "training_flops": float(f"{flops:.4g}"), "dollars_at_price_an_hour": dollars}
