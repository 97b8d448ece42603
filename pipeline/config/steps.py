"""What one step is given of the configuration.

A rule passes its slice as one canonical JSON string, so that a change of any other key leaves the step alone. A slice
holds result keys only; runtime and report keys reach a step through `Settings`, which no rule watches.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from pipeline.config.fields import Section, result
from pipeline.config.schema import (
    Config,
    Diffusion,
    Evaluation,
    FrozenModels,
    Model,
    Report,
    Runtime,
    Stage,
    Validation,
)
from pipeline.config.sources import AnySource
from pipeline.errors import UserError


class Slice(Section):
    """Result keys of one step."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises: UserError if the JSON is not this step's slice."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the JSON"
            raise UserError(f"--config: {place}: {first['msg']}; `python -m pipeline config STEP` prints a valid one") from error


class CollectSlice(Slice):
    """sources: raw images to a webdataset shard and its ledger."""

    name: str = result()
    source: AnySource = result()


class CaptionSlice(Slice):
    """captions: a caption for every image of a shard."""

    mode: str = result()
    captioner: str | None = result(None)
    all_captions: bool = result(False, neutral=True)


class EncodeSlice(Slice):
    """encode: latents at every resolution, and text embeddings."""

    vae: str = result()
    text_encoder: str = result()
    text_tokens: int | None = result(None)
    text_padding: str = result("attend", neutral=True)
    resolutions: list[int] = result()
    seed: int = result()


class SourceUse(Section):
    """How a stage uses a source."""

    role: str = result()
    upscale: bool = result()


class ManifestSlice(Slice):
    """manifest: which samples a stage trains on."""

    stage: str = result()
    px: int = result()
    sources: dict[str, SourceUse] = result()
    held_out: float = result(0.0, "share of the samples kept for validation", neutral=True)
    seed: int = result(0, "seed of the choice", neutral=True)


class TrainSlice(Slice):
    """train: one stage."""

    name: str = result()
    stage: Stage = result()
    model: Model = result()
    diffusion: Diffusion = result()
    base_px: int = result(doc="resolution of the first stage; positions of later ones are interpolated to it")
    vae: str = result(doc="for the sample grids")
    text_encoder: str = result(doc="for the sample grids")
    text_tokens: int | None = result(None)
    seed: int = result()


class EvaluateSlice(Slice):
    """evaluate: sample and score."""

    evaluation: Evaluation = result()
    models: FrozenModels = result()
    seed: int = result()


class Settings(Section):
    """Runtime and report keys, read from the run's record; no rule watches them."""

    runtime: Runtime = Runtime()
    validation: Validation = Validation()
    report: Report = Report()

    @classmethod
    def read(cls, file: Path | None) -> Self:
        """The run's record that Snakemake writes, or the defaults when a step is run by hand without one."""
        if file is None:
            return cls()
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            return cls(runtime=record["runtime"], validation=record["validation"], report=record["report"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{file}: not a run's record ({error}); Snakemake writes it, or leave --settings away") from error


def _collect(config: Config, source: str) -> Slice:
    # How the images are used later is no reason to collect them again.
    used_later = {"role": "real", "caption": "keep", "all_captions": False, "upscale": False}
    return CollectSlice(name=source, source=config.sources[source].model_copy(update=used_later))


def _caption(config: Config, source: str) -> Slice:
    chosen = config.sources[source]
    captioner = None if chosen.caption == "keep" else config.models.captioner
    return CaptionSlice(mode=chosen.caption, captioner=captioner, all_captions=chosen.all_captions)


def _encode(config: Config, source: str) -> Slice:
    models = config.models
    return EncodeSlice(
        vae=models.vae,
        text_encoder=models.text_encoder,
        text_tokens=models.text_tokens,
        text_padding=models.text_padding,
        resolutions=config.resolutions(source),
        seed=config.seed,
    )


def _manifest(config: Config, stage: str) -> Slice:
    chosen = {name: config.sources[name] for name in config.stage_sources(stage)}
    uses = {name: SourceUse(role=source.role, upscale=source.upscale) for name, source in chosen.items()}
    share = config.validation.share
    seed = config.seed if share else 0
    return ManifestSlice(stage=stage, px=config.stages[stage].px, sources=uses, held_out=share, seed=seed)


def _train(config: Config, stage: str) -> Slice:
    return TrainSlice(
        name=stage,
        stage=config.stages[stage],
        model=config.model,
        diffusion=config.diffusion,
        base_px=config.stages[config.schedule[0]].px,
        vae=config.models.vae,
        text_encoder=config.models.text_encoder,
        text_tokens=config.models.text_tokens,
        seed=config.seed,
    )


def _evaluate(config: Config) -> Slice:
    return EvaluateSlice(evaluation=config.evaluation, models=config.models, seed=config.seed)


STEPS: dict[str, Callable[..., Slice]] = {
    "collect": _collect,
    "caption": _caption,
    "encode": _encode,
    "manifest": _manifest,
    "train": _train,
    "evaluate": _evaluate,
}


def slice_for(config: Config, step: str, **wildcards: Any) -> str:
    """Canonical JSON of a step's slice: `slice_for(config, "train", stage="low_masked")`."""
    return STEPS[step](config, **wildcards).to_json()
