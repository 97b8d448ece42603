"""How a run goes and what is shown of it: keys that decide no artifact."""

from typing import Literal

from pipeline.config.fields import Section, report, runtime


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
