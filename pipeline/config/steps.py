"""What one step is given of the configuration.

A rule passes its slice as one canonical JSON string, so that a change of any other key leaves the step alone. A slice
holds result keys only; runtime and report keys reach a step through `Settings`, which no rule watches.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError

from pipeline.config.evaluation import Evaluation, GenEval
from pipeline.config.fields import Section, result
from pipeline.config.running import Report, Runtime
from pipeline.config.schema import (
    Captioning,
    Config,
    Diffusion,
    Filters,
    FrozenModels,
    Model,
    Stage,
    Validation,
)
from pipeline.config.sources import AnySource
from pipeline.errors import UserError

DRAWN = (
    "source", "images", "sampler", "steps", "guidance", "seed", "weights", "untrained_images", "prompt_sets", "prompts_a_set",
)  # fmt: skip
GENEVAL_DRAWN = ("prompts", "prompts_sha256", "images_a_prompt", "limit")
BUCKETS = ("crop", "max_aspect", "bucket_step")  # keys of models; without buckets no reason to encode again


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


class TableSlice(Slice):
    """table: the table that all shards of a source share."""

    name: str = result()
    source: AnySource = result()


class CollectSlice(Slice):
    """sources: raw images to a webdataset shard and its ledger."""

    name: str = result()
    source: AnySource = result()


class CaptionSlice(Slice):
    """captions: a caption for every image of a shard."""

    mode: str = result()
    captioner: str | None = result(None)
    captioning: Captioning | None = result(None, neutral=True)
    dtype: str = result("float32", neutral=True)
    all_captions: bool = result(False, neutral=True)


class EncodeSlice(Slice):
    """encode: latents at every resolution, and text embeddings."""

    vae: str = result()
    text_encoder: str = result()
    text_tokens: int | None = result(None)
    text_padding: str = result("attend", neutral=True)
    text_storage: str = result("float16", neutral=True)
    posterior: str = result("sample", neutral=True)
    crop: str = result("centre", neutral=True)
    max_aspect: float = result(2.0, neutral=True)
    bucket_step: int | None = result(None, neutral=True)
    dtype: str = result("float32", neutral=True)
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
    filters: Filters = result(Filters())
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
    training_flops: float | None = result(None, "train for so many instead of stage.images, in whole batches", neutral=True)


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
    evaluation: Evaluation | None = None  # for the scores while training; None: a step that is run by hand
    yields: dict[str, float] = Field({})  # sources.NAME.min_yield, where it is given

    @classmethod
    def read(cls, file: Path | None) -> Self:
        """The run's record that Snakemake writes, or the defaults when a step is run by hand without one."""
        if file is None:
            return cls()
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            given = {name: source["min_yield"] for name, source in record["sources"].items()}
            yields = {name: least for name, least in given.items() if least is not None}
            sections = {name: record[name] for name in ("runtime", "validation", "report", "evaluation")}
            return cls(**sections, yields=yields)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{file}: not a run's record ({error}); Snakemake writes it, or leave --settings away") from error


def _table(config: Config, source: str) -> Slice:
    """Only the keys that make the table: how its images are stored is no reason to read it again."""
    chosen = config.sources[source]
    kept = {key: getattr(chosen, key) for key in ("kind", *chosen.table_keys)}
    needed = {key: getattr(chosen, key) for key in ("files", "links") if key in type(chosen).model_fields}
    return TableSlice(name=source, source=type(chosen)(**kept, **needed))


def _collect(config: Config, source: str) -> Slice:
    # How the images are used later is no reason to collect them again.
    used_later = {"role": "real", "caption": "keep", "all_captions": False, "upscale": False}
    return CollectSlice(name=source, source=config.sources[source].model_copy(update=used_later))


def _caption(config: Config, source: str) -> Slice:
    chosen = config.sources[source]
    captioner = None if chosen.caption == "keep" else config.models.captioner
    written = {"captioning": config.captioning, "dtype": config.models.dtype} if captioner else {}
    return CaptionSlice(mode=chosen.caption, captioner=captioner, all_captions=chosen.all_captions, **written)


def _encode(config: Config, source: str) -> Slice:
    models = config.models
    return EncodeSlice(
        vae=models.vae,
        text_encoder=models.text_encoder,
        text_tokens=models.text_tokens,
        text_padding=models.text_padding,
        text_storage=models.text_storage,
        posterior=models.posterior,
        **({name: getattr(models, name) for name in BUCKETS} if models.crop == "buckets" else {}),
        dtype=models.dtype,
        resolutions=config.resolutions(source),
        seed=config.seed,
    )


def _manifest(config: Config, stage: str) -> Slice:
    chosen = {name: config.sources[name] for name in config.stage_sources(stage)}
    uses = {name: SourceUse(role=source.role, upscale=source.upscale) for name, source in chosen.items()}
    share = config.validation.share
    seed = config.seed if share else 0
    px, filters = config.stages[stage].px, config.filters
    return ManifestSlice(stage=stage, px=px, sources=uses, filters=filters, held_out=share, seed=seed)


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


def _train_arm(config: Config, arm: str, seed: str) -> Slice:
    """One variant of the ablation: one stage from scratch, for the FLOPs that all variants get."""
    assert config.ablation, "arms are those of an ablation"
    stage = config.ablation.arms[arm].stage
    whole = _train(config, config.schedule[0])
    own = {"name": stage, "stage": config.stages[stage], "base_px": config.stages[stage].px, "model": config.arm_model(arm)}
    return whole.model_copy(update={**own, "seed": int(seed), "training_flops": config.ablation.training_flops})


def _evaluate(config: Config, guidance: str | None = None, weights: str | None = None) -> Slice:
    """With the scale of the configuration, or another of its sweep, and with its choice of weights, or another. The sweep
    itself is no reason to evaluate again."""
    changed: dict[str, Any] = {"guidance_sweep": [], **({"weights": weights} if weights else {})}
    if guidance is not None:
        changed |= {"guidance": float(guidance), "geneval": None, "prompt_sets": {}, "untrained_images": 0}
    return EvaluateSlice(evaluation=config.evaluation.model_copy(update=changed), models=config.models, seed=config.seed)


def _sample(config: Config, guidance: str | None = None, weights: str | None = None) -> Slice:
    """What the drawing of pictures depends on: how they are scored is no reason to look at them again."""
    whole = _evaluate(config, guidance, weights)
    assert isinstance(whole, EvaluateSlice)
    asked = whole.evaluation.geneval
    prompts = asked and GenEval(**{key: getattr(asked, key) for key in GENEVAL_DRAWN})
    kept = Evaluation(**{key: getattr(whole.evaluation, key) for key in DRAWN}, geneval=prompts)
    return whole.model_copy(update={"evaluation": kept})


STEPS: dict[str, Callable[..., Slice]] = {
    "table": _table,
    "collect": _collect,
    "caption": _caption,
    "encode": _encode,
    "manifest": _manifest,
    "train": _train,
    "train-arm": _train_arm,
    "evaluate": _evaluate,
    "sample": _sample,
}


def slice_for(config: Config, step: str, **wildcards: Any) -> str:
    """Canonical JSON of a step's slice: `slice_for(config, "train", stage="low_masked")`."""
    return STEPS[step](config, **wildcards).to_json()
