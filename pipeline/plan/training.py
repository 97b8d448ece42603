"""The jobs behind the data: training, drawing, scoring and what is handed on."""

import math
from collections.abc import Iterator

from pipeline.architecture import forward_flops, parameters, text_flops
from pipeline.config import Config
from pipeline.plan.estimate import HOUR, StagePlan, images_of, local_frozen_bytes, network, shapes, stages
from pipeline.plan.jobs import Job
from pipeline.plan.rates import Rates

STATES = 4  # numbers that a checkpoint keeps of a weight: itself, its average, AdamW's two moments
FLOAT = 4  # bytes
FID_IMAGES = 30_000  # of the published numbers on COCO
SCENE_PROMPTS, GENEVAL_PROMPTS = 240, 553  # of the embedded benchmark, and of the published one


def checkpoint_bytes(config: Config) -> float:
    """Of one checkpoint."""
    return STATES * FLOAT * parameters(network(config, config.stages[config.schedule[0]].px))


def training_jobs(config: Config, rates: Rates) -> list[Job]:
    """One a stage."""
    return [_train(config, rates, stage) for stage in stages(config, rates)]


def _train(config: Config, rates: Rates, stage: StagePlan) -> Job:
    runtime, size, devices = config.runtime, checkpoint_bytes(config), _training_devices(config)
    scores = math.ceil(stage.images / config.evaluation.curve.every_images) * config.evaluation.curve.images
    drawn = scores * image_flops(config, config.stages[stage.name].px, config.evaluation.curve.steps) / rates.sampling.value
    checkpoints = math.ceil(stage.images / runtime.checkpoint_every_images)
    snapshots = len(config.stages[stage.name].posthoc_ema) * math.ceil(stage.images / runtime.snapshot_every_images) * size / 8
    best = size / STATES if scores else 0.0  # the average of the best score, beside the checkpoint of the best validation loss
    stays = min(checkpoints, runtime.keep_checkpoints + bool(config.validation.share)) * size + snapshots + best
    folder = f"results/work/train/{stage.name}"
    return Job(
        "train",
        f"results/train/{stage.name}/summary.json",
        rates.start.value,
        HOUR * stage.hours / devices + drawn,
        devices,
        read=stage.images * _sample_bytes(config, config.stages[stage.name].px),
        written=checkpoints * size + snapshots,
        kept={folder: stays},
        scratch={folder: size if checkpoints > runtime.keep_checkpoints else 0.0},  # the new one before the old one goes
    )


def _training_devices(config: Config) -> int:
    """Without a GPU the machine is the device."""
    return max(1, config.runtime.gpus) * config.runtime.nodes


def _sample_bytes(config: Config, px: int) -> float:
    made = shapes(config)
    return made.latent_bytes(px) + made.text_bytes


def image_flops(config: Config, px: int, steps: int) -> float:
    """To draw one image with the evaluation's sampler. Guidance asks twice, and reads no text the second time."""
    evaluation, model = config.evaluation, network(config, px)
    calls = 2 * steps - 1 if evaluation.sampler.name == "heun" else steps
    rows = calls * (1 if evaluation.guidance == 1 else 2)
    return rows * (forward_flops(model) - text_flops(model)) + text_flops(model)


def evaluation_jobs(config: Config, rates: Rates) -> Iterator[Job]:
    """Drawing, which jobs may share, and scoring; of every scale of a sweep the samples alone."""
    stage, asked = config.schedule[-1], config.evaluation
    pictures = _pictures(config)
    yield from _evaluate(config, rates, f"results/eval/{stage}", sum(pictures.values()), pictures["samples"], "")
    for scale in asked.guidance_sweep:
        if scale != asked.guidance:
            folder = f"results/eval/{stage}/guidance/{scale}"
            yield from _evaluate(config, rates, folder, pictures["samples"], pictures["samples"], "_guidance")
    light = rates.light_start.value
    if asked.guidance_sweep:
        yield Job("guidance", "results/guidance.json", light)
    yield Job("card", "results/fid_coco.json", light)
    weights = checkpoint_bytes(config) / STATES
    made = weights + local_frozen_bytes(config)
    kept = {"results/model": made}
    yield Job("model", "results/model/model_index.json", rates.start.value, read=made, written=made, kept=kept)
    yield Job("report", "results/report.html", light)


def _pictures(config: Config) -> dict[str, int]:
    """How many are drawn for what. A set of the evaluation whose size is not known counts as FID_IMAGES."""
    asked = config.evaluation
    known = images_of(config.sources[asked.source]) or FID_IMAGES
    images = min(asked.images or known, known)
    counts = {"samples": images, "untrained": min(asked.untrained_images, images)}
    if asked.geneval:
        prompts = SCENE_PROMPTS if asked.geneval.prompts == "scenes" else GENEVAL_PROMPTS
        counts["geneval"] = min(prompts, asked.geneval.limit or prompts) * asked.geneval.images_a_prompt
    return counts | {"prompt_sets": len(asked.prompt_sets) * asked.prompts_a_set}


def _evaluate(config: Config, rates: Rates, folder: str, drawn: int, samples: int, suffix: str) -> Iterator[Job]:
    """`drawn` pictures, of which the `samples` are scored beside as many reconstructions of real images."""
    px, parts = config.stages[config.schedule[-1]].px, config.runtime.sample_shards
    decoding = (px / 256) ** 2 / rates.encodes.value
    drawing = drawn * (image_flops(config, px, config.evaluation.steps) / rates.sampling.value + decoding)
    work, start = f"results/work/eval/{config.schedule[-1]}", rates.start.value
    png = 3.0 * px * px  # at most
    if parts > 1:
        made = drawn * png / parts
        for part in range(1, parts + 1):
            output = f"{folder}/samples/{part}-of-{parts}.json"
            yield Job(f"sample{suffix}", output, start, drawing / parts, devices=1, written=made, kept={work: made})
        drawn = drawing = 0
    made, read = (samples + drawn) * png, 3 * samples * png  # reconstructions; samples, real images and these
    time = drawing + 2 * samples * decoding
    yield Job(f"evaluate{suffix}", f"{folder}/card.json", start, time, 1, read=read, written=made, kept={work: made})
