"""Images, bytes, GPU-hours and dollars of every source and stage, from the configuration and files that are here.

Numbers of a source that is not here yet are its `expect`; everything else is counted.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.architecture import PRESETS, MicroDiTConfig, at_resolution, training_flops
from pipeline.artifacts import read_json
from pipeline.config import Config, local_files
from pipeline.config.sources import AnySource, CocoSource, FolderSource, SyntheticSource
from pipeline.errors import UserError
from pipeline.frozen.models import locate
from pipeline.plan.rates import Rates

HOUR = 3600.0
TAR_BYTES = 2048  # of a stored image beside its own: two headers, its description, filling up to whole blocks
ROW_BYTES = 80  # of a sample in a ledger, and of a caption
KEY_BYTES = 16  # of a row of latents or text embeddings: the key and its place
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif"}


@dataclass(frozen=True)
class SourcePlan:
    """One source. Images may be unknown (None), and then so is all that follows from them. Bytes are bytes."""

    name: str
    images: int | None  # to fetch or read
    usable: int | None  # of them, that reach training
    written: int | None  # captions that the captioner writes
    fetch: float  # bytes
    tars: float | None  # bytes of the image shards
    ledgers: float | None
    captions: float | None
    latents: float | None  # of all resolutions
    texts: float | None  # of the text embeddings
    caption_hours: float | None  # of one device
    encode_hours: float | None

    @property
    def keep(self) -> float | None:
        """Bytes that stay."""
        return None if self.images is None else self.tars + self.ledgers + self.captions + self.latents + self.texts


@dataclass(frozen=True)
class StagePlan:
    """One stage of training. Hours are of one device."""

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


def local_frozen_bytes(config: Config) -> float:
    """Of the weights of autoencoder and text encoder, where they are no models of the hub: a model folder carries those."""
    here = [locate(ref) for ref in (config.models.vae, config.models.text_encoder) if _here(ref) is not None]
    return float(sum(file.stat().st_size for place in here for file in place.folder.glob("*.safetensors")))


def sources(config: Config, rates: Rates) -> list[SourcePlan]:
    """All sources, the evaluation's too, in the order of the configuration."""
    used, made = [*config.training_sources(), config.evaluation.source], shapes(config)
    return [_source(config, rates, made, name, source) for name, source in config.sources.items() if name in used]


def _source(config: Config, rates: Rates, made: Shapes, name: str, source: AnySource) -> SourcePlan:
    whole = images_of(source)
    images = None if whole is None else round(whole * source.fraction)
    fetch = 1e9 * (source.expect.gigabytes or 0.0) * source.fraction
    if images is None:
        return SourcePlan(name, None, None, None, fetch, *[None] * 7)
    usable = round(images * source.expect.usable)
    written = _written(config, source, usable)
    given = 0 if source.caption == "write" else usable
    resolutions = config.resolutions(name)
    texts = (given + (written if source.caption in ("add", "write") else 0)) * bool(resolutions)
    pixels = sum((px / 256) ** 2 for px in resolutions)
    encode = usable * pixels / rates.encodes.value + texts / rates.texts.value
    return SourcePlan(
        name,
        images,
        usable,
        written,
        fetch,
        tars=usable * (_stored_bytes(config, source, fetch / images if images else 0.0) + TAR_BYTES),
        ledgers=images * ROW_BYTES,
        captions=(given + written) * ROW_BYTES,
        latents=usable * sum(made.latent_bytes(px) + KEY_BYTES for px in resolutions),
        texts=texts * (made.text_bytes + KEY_BYTES),
        caption_hours=written / rates.captions.value / HOUR,
        encode_hours=encode / HOUR,
    )


def _written(config: Config, source: AnySource, usable: int) -> int:
    """Captions by the captioner. How many images lack one is known of scenes alone; of others all are counted."""
    if source.caption == "keep":
        return 0
    lacking = source.uncaptioned if isinstance(source, SyntheticSource) and source.caption == "fill" else 1.0
    return round(usable * lacking) * len(config.captioning.prompts) * config.captioning.samples


def _stored_bytes(config: Config, source: AnySource, fetched: float) -> float:
    """Of one image: by its pixels, at most what is fetched of it."""
    side = min(source.store_side, source.px if isinstance(source, SyntheticSource) else 1024)
    stored = 1e3 * config.plan.stored_kb * (side / 512) ** 2
    return min(stored, fetched) if fetched else stored


def images_of(source: AnySource) -> int | None:
    """Of the whole source: counted where that is quick, else as expected."""
    counted = None
    if isinstance(source, SyntheticSource):
        counted = source.count
    elif isinstance(source, FolderSource):
        counted = sum(file.suffix.lower() in SUFFIXES for file in _folder(source))
    elif isinstance(source, CocoSource) and not source.ids and source.annotations.endswith(".json"):
        file = Path(source.annotations)
        counted = len(read_json(file).get("images", ())) if file.is_file() else None
    return counted or source.expect.images


def stages(config: Config, rates: Rates) -> list[StagePlan]:
    """All stages in their order."""
    usable = {source.name: source.usable for source in sources(config, rates)}
    return [_stage(config, rates, name, [usable[source] for source in config.stage_sources(name)]) for name in config.schedule]


def _stage(config: Config, rates: Rates, name: str, usable: list[int | None]) -> StagePlan:
    stage = config.stages[name]
    flops = stage.images * training_flops(network(config, stage.px), stage.mask_ratio)
    epochs = None if None in usable or not sum(usable) else stage.images / sum(usable)
    return StagePlan(name, stage.images, epochs, flops, flops / rates.training[name].value / HOUR)


def network(config: Config, px: int) -> MicroDiTConfig:
    """What is trained at a resolution. Raises: UserError if its numbers do not fit together."""
    made, model = shapes(config), config.model
    given = {"in_channels": made.channels, "caption_channels": made.width, "caption_length": made.tokens}
    base = config.stages[config.schedule[0]].px // made.factor
    try:
        whole = MicroDiTConfig(**{**vars(PRESETS[model.preset]), **given, "input_size": base, **model.overrides()})
        return at_resolution(whole, px // made.factor)
    except ValueError as error:
        raise UserError(f"{error}; change the section `model`, or the resolutions of `stages`") from error


def here(config: Config) -> dict[str, tuple[int, float]]:
    """Files and bytes that lie on this machine already, by source."""
    found = {}
    for name in (*config.training_sources(), config.evaluation.source):
        source = config.sources[name]
        files = _folder(source) if isinstance(source, FolderSource) else [Path(file) for file in local_files(source)]
        sizes = [file.stat().st_size for file in files if file.is_file()]
        found[name] = (len(sizes), float(sum(sizes)))
    return found


def _folder(source: FolderSource) -> list[Path]:
    return [Path(folder) / file for folder, _, files in os.walk(source.path) for file in files]
