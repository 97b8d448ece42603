"""Every config key, its default, unit, bound and role, once.

Roles say what a key may change:
  result   the artifacts themselves; only these enter rule params and fingerprints
  runtime  how fast or where (devices, batch sizes of inference, intervals); never causes a rerun
  report   what is shown (titles, prices); never causes a rerun of anything but the card and the report

`config.yaml` holds the embedded default, `workflow/presets/*.yaml` are overlays. `workflow/schemas/config.schema.json`
and `docs/reference/config.md` are generated from this file (`make generated`).
"""

import difflib
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from pipeline.config.evaluation import Ablation, Arm, Evaluation
from pipeline.config.fields import Name, Section, report, result, runtime
from pipeline.config.models import ModelRef
from pipeline.config.running import Plan, Report, Runtime
from pipeline.config.sources import AnySource


def _posthoc_widths(value: list[float]) -> list[float]:
    if value and (len(set(value)) < 2 or len(set(value)) < len(value)):
        raise ValueError(f"{value} must be two or more different widths, or empty")
    return value


Width = Annotated[float, Field(ge=0.001, le=0.288)]  # of t^γ with γ >= 0
Sigma = Annotated[float, Field(gt=0)]
PosthocWidths = Annotated[list[Width], AfterValidator(_posthoc_widths)]


class FrozenModels(Section):
    """Models that are used but not trained: `embedded:NAME`, a local folder, or `hf:OWNER/NAME@REVISION`."""

    vae: ModelRef = result("embedded:vae", "diffusers autoencoder between pixels and latents")
    text_encoder: ModelRef = result("embedded:clip", "its last hidden state after the final norm is the text embedding")
    text_tokens: int | None = result(None, "tokens a caption is cut or padded to; null: the encoder's own length", ge=1)
    text_padding: Literal["attend", "drop"] = result(
        "attend",
        "`attend` to the padding of captions, as the paper does, or `drop` it from disk and attention",
        neutral=True,
    )
    text_storage: Literal["float16", "int8"] = result(
        "float16", "how text embeddings are stored; `int8` with a scale a token is half the bytes", neutral=True
    )
    posterior: Literal["sample", "mean"] = result(
        "sample", "latents are one `sample` of the autoencoder's posterior, as in the paper, or its `mean`", neutral=True
    )
    crop: Literal["centre", "buckets"] = result(
        "centre",
        "latents of an image's `centre` square, as the paper's, or in the nearest of some aspect ratios, its `buckets`",
        neutral=True,
    )
    max_aspect: float = result(2.0, "longer side / shorter side of a bucket at most", ge=1, neutral=True)
    bucket_step: int | None = result(
        None,
        "sides of buckets are multiples of this, in pixels; null: px / 16, rounded up to what the autoencoder can divide",
        ge=1,
        neutral=True,
    )
    dtype: Literal["float32", "bfloat16"] = result(
        "float32", "what the frozen models compute in when they encode and caption; `bfloat16` for GPUs", neutral=True
    )
    captioner: ModelRef = result("embedded:captioner", "transformers image-text-to-text or vision-encoder-decoder model")


class Captioning(Section):
    """What `models.captioner` writes."""

    prompts: list[str] = result(
        ["Describe this image in one sentence."],
        "a caption for each, such as a short and a long one; models that take no prompt write one caption",
        min_length=1,
    )
    samples: int = result(1, "captions a prompt; more than one needs a temperature", ge=1, neutral=True)
    temperature: float = result(0.0, "0 takes the likeliest word, more draws words", ge=0, neutral=True)
    top_p: float = result(1.0, "words are drawn from the likeliest that have this probability together", gt=0, le=1, neutral=True)
    max_tokens: int = result(96, "length of a caption at most", ge=1)
    seed: int = result(0, "seed of drawn words", ge=0, neutral=True)
    remote_code: bool = result(False, "run the code that comes with models.captioner; read it first", neutral=True)

    @model_validator(mode="after")
    def _several_need_a_temperature(self) -> "Captioning":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples above 1 need a temperature above 0, or all are the same")
        return self


class Range(Section):
    """Bounds of a score; null: none."""

    min: float | None = result(None, "least")
    max: float | None = result(None, "most")


class Filters(Section):
    """Which of the collected samples are trained on. Decided in the manifest, so that a change encodes nothing again."""

    near_duplicates: int | None = result(
        2,
        "images whose perceptual hashes differ in at most this many of 64 bits are one; null: equal bytes alone",
        ge=0,
        le=3,
    )
    leaked_captions: bool = result(True, "leave out captions that the evaluation set has too, word for word")
    licences: list[str] | None = result(None, "licences to train on, as in the ledger; null: all")
    max_aspect: float | None = result(None, "longer side / shorter side at most", ge=1)
    min_caption: int = result(0, "letters of a caption at least", ge=0)
    max_caption: int | None = result(None, "letters of a caption at most", ge=1)
    scores: dict[Name, Range] = result({}, "bounds of scores, such as {aesthetic: {min: 5}}; images without the score stay")
    take_down: str = result("take_down.txt", "file of samples to leave out, a SOURCE/KEY a line; `python -m pipeline take-down`")


class Model(Section):
    """The MicroDiT: a preset, and any of its numbers changed. Latent channels, text width and length follow from the
    frozen models; null means the preset's value."""

    preset: Literal["small", "tiny2", "xl2"] = result("small", "architecture to start from")
    mask_mode: Literal["deferred", "naive", "none"] | None = result(
        None, "where patches are dropped: behind the patch-mixer, before the backbone, nowhere"
    )
    patch_size: int | None = result(None, "side of a patch, in latent pixels", ge=1)
    dim: int | None = result(None, "width of the backbone", ge=16)
    depth: int | None = result(None, "backbone blocks", ge=1)
    head_dim: int | None = result(None, "width of an attention head", ge=4)
    multiple_of: int | None = result(None, "hidden widths are rounded up to a multiple of this", ge=1)
    qkv_ratio: tuple[float, float] | None = result(None, "attention width / dim in the first and the last block")
    ffn_ratio: tuple[float, float] | None = result(None, "feed-forward width / dim in the first and the last block")
    mixer_depth: int | None = result(None, "patch-mixer blocks", ge=0)
    mixer_dim: int | None = result(None, "width of the patch-mixer", ge=16)
    mixer_ffn_ratio: float | None = result(None, "feed-forward width / width in the patch-mixer", gt=0)
    num_experts: int | None = result(None, "experts of a sparse block", ge=0)
    expert_capacity: float | None = result(None, "experts that take a token, on average", gt=0)
    experts_every_n: int | None = result(None, "every n-th block is sparse", ge=1)

    def overrides(self) -> dict[str, Any]:
        """The numbers that differ from the preset."""
        return {key: value for key, value in self.model_dump(exclude={"preset"}).items() if value is not None}


class Diffusion(Section):
    """EDM constants (Karras et al. 2022, arXiv 2206.00364)."""

    sigma_data: float = result(0.9, "standard deviation the data is assumed to have", gt=0)
    sigma_min: float = result(0.002, "last noise level of the sampler before 0", gt=0)
    sigma_max: float = result(80.0, "first noise level of the sampler", gt=0)
    rho: float = result(7.0, "curvature of the sampler's grid", gt=0)


class Stage(Section):
    """One training stage. All state is counted in images."""

    px: int = result(doc="resolution, in pixels", ge=8)
    mask_ratio: float = result(doc="share of the patches that is dropped", ge=0, lt=1)
    images: int = result(doc="images seen in this stage", ge=1)
    batch_images: int = result(2048, "images an optimiser step, over all processes", ge=1)
    sources: list[Name] | None = result(None, "sources to train on; null: all but evaluation")
    written_share: float | None = result(
        None,
        "how often a written caption is taken where there are given ones too; null: each alike",
        ge=0,
        le=1,
        neutral=True,
    )
    weights: dict[Name, float] | None = result(
        None, "share of each source in the batches, in any unit; null: by the number of samples", neutral=True
    )
    learning_rate: float = result(8e-5, "peak learning rate of AdamW", gt=0)
    warmup_images: int = result(0, "images of linear warm-up", ge=0)
    schedule: Literal["constant", "cosine"] = result("constant", "learning rate after the warm-up")
    final_lr_ratio: float = result(1.0, "last learning rate / peak, for `cosine`", gt=0, le=1)
    weight_decay: float = result(0.1, "AdamW weight decay", ge=0)
    betas: tuple[float, float] = result((0.9, 0.999), "AdamW betas")
    eps: float = result(1e-8, "AdamW epsilon", gt=0)
    clip_norm: float = result(0.25, "gradient norm is clipped to this", gt=0)
    p_mean: float = result(-0.6, "mean of ln sigma in training")
    p_std: float = result(1.2, "standard deviation of ln sigma in training", gt=0)
    caption_dropout: float = result(0.1, "share of captions replaced by zeros", ge=0, le=1)
    ema_decay: float = result(0.99975, "decay of the averaged weights, a step", ge=0, lt=1)
    ema_start_images: int = result(0, "images before which the average just follows the weights", ge=0)
    posthoc_ema: PosthocWidths = result(
        [],
        "relative widths of power-function averages to snapshot, two or more (EDM2: 0.05 and 0.1); empty: none",
        neutral=True,
    )
    skip_norm_factor: float = result(
        20.0,
        "a step whose gradient norm is not finite, or this many times the usual one, is skipped",
        gt=1,
        neutral=True,
    )
    start_from: Literal["model", "ema"] = result("model", "which weights of the parent stage to start from")
    fresh_optimizer: bool = result(True, "start AdamW anew instead of from the parent's state")


class Validation(Section):
    """Samples that no stage trains on, and the loss on them at fixed noise levels."""

    share: float = result(0.0, "share of the training samples held out, the same in every stage", ge=0, lt=0.5, neutral=True)
    images: int = runtime(512, "samples to validate on, at most; all there are if fewer", ge=1)
    sigmas: list[Sigma] = runtime([0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0], "noise levels of the validation loss", min_length=1)


class Config(Section):
    """The whole configuration."""

    seed: int = result(0, "seed of initial weights, data order, noise and masks", ge=0)
    models: FrozenModels = result(FrozenModels(), "frozen models")
    sources: dict[Name, AnySource] = result(doc="where images come from", min_length=1)
    captioning: Captioning = result(Captioning(), "what the captioner writes")
    filters: Filters = result(Filters(), "which of the collected samples are trained on")
    model: Model = result(Model(), "the network that is trained")
    diffusion: Diffusion = result(Diffusion(), "noise levels")
    stages: dict[Name, Stage] = result(doc="training stages by name", min_length=1)
    schedule: list[Name] = result(doc="stages in the order they are trained", min_length=1)
    validation: Validation = result(Validation(), "the validation loss while training")
    evaluation: Evaluation = result(doc="the final evaluation")
    ablation: Ablation | None = result(None, "variants to compare at the same training FLOPs; null: none", neutral=True)
    runtime: Runtime = runtime(Runtime(), "how to run")
    plan: Plan = report(Plan(), "what `python -m pipeline plan` reckons with")
    report: Report = report(Report(), "what is shown")

    @model_validator(mode="after")
    def _names_exist(self) -> "Config":
        for name in self.schedule:
            _known(name, self.stages, "schedule", "stages")
        if len(set(self.schedule)) < len(self.schedule):
            raise ValueError("schedule: a stage is named twice")
        _known(self.evaluation.source, self.sources, "evaluation.source", "sources")
        if self.sources[self.evaluation.source].role != "evaluation":
            raise ValueError(f"sources.{self.evaluation.source}.role: must be evaluation, evaluation.source names it")
        if self.evaluation.weights == "best" and not self.evaluation.curve.images:
            raise ValueError("evaluation.weights: best is the lowest FID of the curve, which is off; set evaluation.curve.images")
        for name, arm in self.arms.items():
            _known(arm.stage, self.stages, f"ablation.arms.{name}.stage", "stages")
            self.arm_model(name)
        for stage in self.used_stages():
            self._check_stage(stage)
        return self

    def _check_stage(self, stage: str) -> None:
        where = f"stages.{stage}"
        for name in self.stages[stage].sources or []:
            _known(name, self.sources, f"{where}.sources", "sources")
        names = self.stage_sources(stage)
        if not names:
            raise ValueError(f"{where}.sources: no source to train on")
        for name in names:
            source = self.sources[name]
            if source.role == "evaluation":
                raise ValueError(f"{where}.sources: {name} is the evaluation set, it is never trained on")
            if self.stages[stage].px > source.store_side:
                raise ValueError(f"sources.{name}.store_side: {source.store_side} is below {where}.px {self.stages[stage].px}")
        for name in self.stages[stage].weights or {}:
            if name not in names:
                raise ValueError(f"{where}.weights: '{name}' is none of the stage's sources ({', '.join(names)})")
        if self.stages[stage].weights and self.models.crop == "buckets":
            raise ValueError(f"{where}.weights: batches of one bucket have no fixed share of each source; leave weights out")
        if self.stages[stage].images % self.stages[stage].batch_images:
            raise ValueError(
                f"{where}.images: {self.stages[stage].images} is no multiple of batch_images {self.stages[stage].batch_images}"
            )

    def stage_sources(self, stage: str) -> list[str]:
        """Names of the sources a stage trains on."""
        chosen = self.stages[stage].sources
        return chosen if chosen is not None else [n for n, s in self.sources.items() if s.role != "evaluation"]

    @property
    def arms(self) -> dict[str, Arm]:
        """Variants of the ablation by name; none without one."""
        return self.ablation.arms if self.ablation else {}

    def arm_model(self, arm: str) -> Model:
        """The network of a variant. Raises: ValueError naming a key of it that does not fit."""
        given = {key: getattr(self.model, key) for key in self.model.model_fields_set}
        try:
            return Model(**{**given, **self.arms[arm].model})
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"ablation.arms.{arm}.model.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error

    def used_stages(self) -> list[str]:
        """Stages of the schedule, then those of the ablation that are not in it."""
        return list(dict.fromkeys([*self.schedule, *(arm.stage for arm in self.arms.values())]))

    def parent(self, stage: str) -> str | None:
        """The stage before this one."""
        place = self.schedule.index(stage)
        return self.schedule[place - 1] if place else None

    def resolutions(self, source: str) -> list[int]:
        """Resolutions at which a source is needed, in pixels, ascending."""
        return sorted({self.stages[s].px for s in self.used_stages() if source in self.stage_sources(s)})

    def training_sources(self) -> list[str]:
        """Sources that any stage of the schedule or the ablation trains on."""
        return [name for name in self.sources if self.resolutions(name)]


def _known(name: str, table: dict[str, Any], where: str, what: str) -> None:
    if name not in table:
        raise ValueError(f"{where}: no '{name}' in {what}{nearest(name, table)}")


def nearest(name: str, names: Any) -> str:
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f" (known: {', '.join(map(str, names))})"
