"""Images, bytes, GPU-hours and dollars of every source and stage, from the configuration and files that are here.

Numbers of a source that is not here yet are its `expect`, rates are the section `plan`; everything else is counted.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import read_json
from pipeline.config import Config, local_files
from pipeline.config.sources import AnySource, CocoSource, FolderSource, SyntheticSource
from pipeline.errors import UserError
from pipeline.frozen.models import locate
from pipeline.model import PRESETS, MicroDiTConfig, at_resolution, training_flops

HOUR = 3600.0
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif"}


@dataclass(frozen=True)
class SourcePlan:
    """One source. Images may be unknown (None), and then so is all that follows from them. Bytes are bytes."""

    name: str
    images: int | None  # to fetch or read
    usable: int | None  # of them, that reach training
    fetch: float  # bytes
    keep: float | None  # bytes of image shards, latents and text embeddings
    caption_hours: float | None  # of one GPU
    encode_hours: float | None


@dataclass(frozen=True)
class StagePlan:
    """One stage of training. Hours are of one GPU."""

    name: str
    images: int
    epochs: float | None  # images seen / images to train on
    flops: float
    hours: float


@dataclass(frozen=True)
class Shapes:
    """What the frozen models make: latents [channels, px / factor, px / factor], text [tokens, width]."""

    channels: int
    factor: int
    tokens: int
    width: int
    text_bytes: int  # stored a caption, with all its padding
    assumed: tuple[str, ...]  # models that are not on this machine

    def latent_bytes(self, px: int) -> int:
        """16 bits a value."""
        return 2 * self.channels * (px // self.factor) ** 2


def shapes(config: Config) -> Shapes:
    """From the models' own configurations where they are on this machine, else from the section `plan`."""
    plan, assumed = config.plan, []
    channels, factor, tokens, width = plan.latent_channels, plan.latent_factor, plan.text_tokens, plan.text_width
    if (vae := _here(config.models.vae)) is None:
        assumed.append(config.models.vae)
    else:
        channels = vae.get("latent_channels", channels)
        factor = 2 ** (len(vae["block_out_channels"]) - 1) if "block_out_channels" in vae else factor
    if (encoder := _here(config.models.text_encoder)) is None:
        assumed.append(config.models.text_encoder)
    else:
        encoder = encoder.get("text_config", encoder)
        tokens, width = encoder.get("max_position_embeddings", tokens), encoder.get("hidden_size", width)
    tokens = config.models.text_tokens or tokens
    text_bytes = tokens * (width + 2 if config.models.text_storage == "int8" else 2 * width)
    return Shapes(channels, factor, tokens, width, text_bytes, tuple(assumed))


def _here(ref: str) -> dict | None:
    """The configuration of a model that is no hub model. A hub's is not asked for: a plan needs no network."""
    if ref.startswith("hf:"):
        return None
    try:
        return locate(ref).config
    except UserError:
        return None


def sources(config: Config) -> list[SourcePlan]:
    """All sources, the evaluation's too, in the order of the configuration."""
    used = [*config.training_sources(), config.evaluation.source]
    return [_source(config, name, source) for name, source in config.sources.items() if name in used]


def _source(config: Config, name: str, source: AnySource) -> SourcePlan:
    plan, made = config.plan, shapes(config)
    whole = _images(source)
    images = None if whole is None else round(whole * source.fraction)
    fetch = 1e9 * (source.expect.gigabytes or 0.0) * source.fraction
    if images is None:
        return SourcePlan(name, None, None, fetch, None, None, None)
    usable = round(images * source.expect.usable)
    written = 0 if source.caption == "keep" else usable * len(config.captioning.prompts) * config.captioning.samples
    texts = (0 if source.caption == "write" else usable) + (written if source.caption in ("add", "write") else 0)
    resolutions = config.resolutions(name)
    stored = 1e3 * plan.stored_kb * (min(source.store_side, 1024) / 512) ** 2
    stored = min(stored, fetch / images) if fetch and images else stored
    keep = usable * (stored + sum(made.latent_bytes(px) for px in resolutions)) + texts * made.text_bytes * bool(resolutions)
    pixels = sum((px / 256) ** 2 for px in resolutions)
    encode = usable * pixels / plan.encodes_per_second + texts * bool(resolutions) / plan.texts_per_second
    return SourcePlan(name, images, usable, fetch, keep, written / plan.captions_per_second / HOUR, encode / HOUR)


def _images(source: AnySource) -> int | None:
    """Of the whole source: as expected, else counted where that is quick."""
    if source.expect.images is not None or isinstance(source, SyntheticSource):
        return source.expect.images if source.expect.images is not None else source.count
    if isinstance(source, FolderSource):
        return sum(file.suffix.lower() in SUFFIXES for file in _folder(source)) or None
    if isinstance(source, CocoSource) and Path(source.annotations).suffix == ".json" and Path(source.annotations).is_file():
        return len(read_json(Path(source.annotations)).get("images", ())) or None
    return None


def stages(config: Config) -> list[StagePlan]:
    """All stages in their order."""
    usable = {source.name: source.usable for source in sources(config)}
    return [_stage(config, name, [usable[source] for source in config.stage_sources(name)]) for name in config.schedule]


def _stage(config: Config, name: str, usable: list[int | None]) -> StagePlan:
    stage, plan = config.stages[name], config.plan
    flops = stage.images * training_flops(_network(config, stage.px), stage.mask_ratio)
    epochs = None if None in usable or not sum(usable) else stage.images / sum(usable)
    return StagePlan(name, stage.images, epochs, flops, flops / (1e12 * plan.peak_tflops * plan.train_share) / HOUR)


def _network(config: Config, px: int) -> MicroDiTConfig:
    made = shapes(config)
    model = config.model
    given = {"in_channels": made.channels, "caption_channels": made.width, "caption_length": made.tokens}
    base = config.stages[config.schedule[0]].px // made.factor
    network = MicroDiTConfig(**{**vars(PRESETS[model.preset]), **given, "input_size": base, **model.overrides()})
    return at_resolution(network, px // made.factor)


def here(config: Config) -> dict[str, tuple[int, float]]:
    """Files and bytes that lie on this machine already, by source."""
    found = {}
    for name, source in config.sources.items():
        files = _folder(source) if isinstance(source, FolderSource) else [Path(file) for file in local_files(source)]
        sizes = [file.stat().st_size for file in files if file.is_file()]
        found[name] = (len(sizes), float(sum(sizes)))
    return found


def _folder(source: FolderSource) -> list[Path]:
    return [Path(folder) / file for folder, _, files in os.walk(source.path) for file in files]
