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


class Downloads(Section):
    """How files are fetched. Nothing here changes a result."""

    parallel: int = runtime(64, "requests at a time", ge=1)
    per_host: int = runtime(8, "requests at a time to one host", ge=1)
    timeout_seconds: float = runtime(30.0, "time to wait for an answer, and for each further part of it", gt=0)
    attempts: int = runtime(4, "tries of a request, further and further apart, before it is a failure", ge=1)
    contact: str | None = runtime(None, "address in the user-agent, for those whose images are fetched: a page or an e-mail")
    allow_hosts: list[str] = runtime([], "hosts in this machine's own network that may be asked, such as a mirror")
    keep: bool = runtime(False, "keep fetched archives once their shard is made")


class Runtime(Section):
    """How to run. Nothing here changes a result."""

    gpus: int = runtime(
        0, "GPUs a training job takes on each of its nodes; inference jobs take one of them; 0: none, as on a laptop", ge=0
    )
    nodes: int = runtime(1, "machines that a training job takes; above 1 it is a job of SLURM", ge=1)
    device: Literal["auto", "cpu", "cuda", "mps"] = runtime("auto", "where to compute")
    precision: Literal["auto", "float32", "bfloat16"] = runtime("auto", "autocast of training; auto: bfloat16 on CUDA")
    downloads: Downloads = runtime(Downloads(), "how files are fetched")
    caption_batch: int = runtime(32, "images a captioner batch", ge=1)
    captioner_mb: int | None = runtime(
        None,
        "memory of a captioning job, in 10^6 bytes; null: 4,000 for the embedded captioner, 4,000 and twice its weights for one "
        "in a folder, 32,000 for one of the hub",
        ge=1,
    )
    encode_batch: int = runtime(64, "images an encoder batch", ge=1)
    decode_workers: int | None = runtime(None, "processes that decode images for the encoder; null: by the cores", ge=0)
    sample_batch: int = runtime(64, "images a sampling batch", ge=1)
    sample_shards: int = runtime(1, "jobs that share the drawing of samples; 1: the evaluation draws them itself", ge=1)
    parallel: Literal["ddp", "fsdp"] = runtime("ddp", "processes keep whole copies of the weights, or `fsdp`: shards of them")
    microbatch: int | Literal["auto"] = runtime("auto", "images a forward pass of training; auto: as many as fit")
    check_disk: bool = runtime(True, "start no run for which the disk has no room, by the count of `python -m pipeline plan`")
    compile: Literal["auto", "on", "off"] = runtime("auto", "compile the blocks of the network; auto: on CUDA")
    data_reading: Literal["mapped", "read"] = runtime(
        "mapped", "training data from local disks by memory maps; `read` whole blocks into memory from network file systems"
    )
    signal_lead_seconds: int = runtime(
        300, "time kept for saving before the deadline; a batch system should warn at least so long before it kills", ge=1
    )
    max_skips_in_row: int = runtime(10, "skipped training steps in a row that stop the run", ge=1)
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = runtime([], "where metrics go beside metrics.jsonl")
    tracker_project: str = runtime("shoestring", "project of the trackers; the stage is the run's name", min_length=1)
    checkpoint_every_images: int = runtime(2_048_000, "images between checkpoints; validation comes with each", ge=1)
    snapshot_every_images: int = runtime(8_192_000, "images between snapshots for post-hoc averages", ge=1)
    keep_checkpoints: int = runtime(2, "checkpoints kept beside the final one", ge=1)
    log_every_images: int = runtime(20_480, "images between lines of metrics.jsonl", ge=1)
    samples_every_images: int = runtime(2_048_000, "images between sample grids", ge=1)
    sample_prompts: list[str] = runtime(
        [], "prompts of the sample grids; empty: the first captions of the evaluation set with evaluation.curve, else of the data"
    )


class Report(Section):
    """What is shown. Nothing here changes a result."""

    title: str = report("Shoestring run", "title of the report page")
    dollars_per_hour: float = report(0.0, "price of one device-hour, for the cost table", ge=0)
    device_name: str | None = report(None, "name of the device in the cost table; null: as found")
    earlier: list[str] = report([], "cards of earlier runs (fid_coco.json) to compare with")


class Plan(Section):
    """What `python -m pipeline plan` reckons with. Null means the number of `device`; what you set counts instead of it."""

    device: Literal["auto", "cpu_2_cores", "h100_paper"] = report(
        "auto",
        "whose speeds to reckon with; `auto`: what `python -m pipeline plan --measure` found for this configuration, else those "
        "of two CPU cores where runtime.gpus is 0, and those of the paper's run where it is not",
    )
    peak_tflops: float | None = report(None, "peak of one device in training", gt=0)
    train_share: float | None = report(None, "share of the peak that training reaches", gt=0, le=1)
    sample_share: float | None = report(None, "share of the peak that sampling reaches", gt=0, le=1)
    captions_per_second: float | None = report(None, "images that one device captions a second", gt=0)
    encodes_per_second: float | None = report(
        None, "images of 256 px that one device turns into latents, or back, a second; other sizes by their pixels", gt=0
    )
    texts_per_second: float | None = report(None, "captions that one device embeds a second", gt=0)
    collects_per_second: float | None = report(None, "images that one core checks and stores a second", gt=0)
    start_seconds: float | None = report(None, "seconds until a job that loads models begins its work", gt=0)
    fetch_mb_per_second: float = report(500.0, "10^6 bytes that arrive a second, over all jobs", gt=0)
    stored_kb: float = report(110.0, "10^3 bytes of a stored image of 512 px; others by their pixels", gt=0)
    latent_channels: int = report(4, "channels of the latents, for a VAE that is not on this machine", ge=1)
    latent_factor: int = report(8, "pixels a latent pixel spans, for the same", ge=1)
    text_tokens: int = report(77, "tokens of a caption, for a text encoder that is not on this machine", ge=1)
    text_width: int = report(1024, "width of a token, for the same", ge=1)


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
