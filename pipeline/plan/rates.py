"""How fast things go: measured here, measured elsewhere, or assumed. Every number says where it comes from."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import read_json
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.fingerprint import digest

MEASURED = Path("results/work/plan/measured.json")  # what `plan --measure` writes
TERA = 1e12


@dataclass(frozen=True)
class Rate:
    """A number and its origin."""

    value: float
    origin: str


@dataclass(frozen=True)
class Device:
    """Numbers by their key of `plan`; `light_start_seconds`, of a job that loads no models, is no key of it."""

    origin: str
    numbers: dict[str, float]


ASSUMED = Device("assumed", {"captions_per_second": 20.0, "encodes_per_second": 500.0, "texts_per_second": 5000.0})
# None is invented: those of the cores are those of the file that is named, and of a GPU only the paper told anything.
DEVICES = {
    "cpu_2_cores": Device(
        "measured in the default run on two CPU cores (benchmarks/results/cpu-2-cores/plan.json)",
        {
            "peak_tflops": 0.208,
            "train_share": 0.394,
            "sample_share": 0.395,
            "captions_per_second": 569.0,
            "encodes_per_second": 34.5,
            "texts_per_second": 5590.0,
            "collects_per_second": 1440.0,
            "start_seconds": 7.0,
            "light_start_seconds": 0.65,
        },
    ),
    "h100_paper": Device(
        "the paper's run: 3.287e20 FLOPs in 499 H100-hours, of a datasheet's 989 TFLOP/s",
        {"peak_tflops": 989.0, "train_share": 0.185},
    ),
}
# What a GPU's measurement says nothing of.
OF_CORES = Device(
    DEVICES["cpu_2_cores"].origin,
    {key: DEVICES["cpu_2_cores"].numbers[key] for key in ("collects_per_second", "start_seconds", "light_start_seconds")},
)
NUMBERS = tuple(DEVICES["cpu_2_cores"].numbers)


@dataclass(frozen=True)
class Rates:
    """Of one device, but `collects`, which are of one core. Training and sampling in FLOP/s, starts in seconds, fetching in
    bytes a second over all jobs, the others in items a second; encodings are of 256 px."""

    device: str
    training: dict[str, Rate]  # by stage
    sampling: Rate
    captions: Rate
    encodes: Rate
    texts: Rate
    collects: Rate
    fetch: Rate
    start: Rate  # of a job that loads models
    light_start: Rate  # of any other
    peak: Rate  # FLOP/s in training
    disk: tuple[Rate, Rate] | None  # bytes a second that one process writes and reads; None: not measured


def fits(config: Config) -> str:
    """What a measurement depends on: it holds for configurations of the same value."""
    models, stages = config.models, config.stages
    shapes = {name: [stages[name].px, stages[name].mask_ratio] for name in config.schedule}
    frozen = [models.vae, models.text_encoder, models.text_tokens, models.captioner, models.dtype]
    return digest({"network": config.model.results(), "frozen": frozen, "stages": shapes, "gpu": config.runtime.gpus > 0})


def rates(config: Config, measured: Path = MEASURED) -> Rates:
    """From the section `plan`, else what `plan.device` names. Raises: UserError for a measurement that is not readable."""
    plan, here = config.plan, read_measured(config, measured) if config.plan.device == "auto" else None
    by_name = ("h100_paper" if config.runtime.gpus else "cpu_2_cores") if plan.device == "auto" else plan.device
    own = {key: value for key in NUMBERS if (value := getattr(plan, key, None)) is not None}
    found = [*(Device(f"plan.{key}", {key: value}) for key, value in own.items())]
    found += [*filter(None, [here and here.device]), DEVICES[by_name], OF_CORES, ASSUMED]
    rate = {key: next((Rate(one.numbers[key], one.origin) for one in found if key in one.numbers), None) for key in NUMBERS}
    peak, share = rate["peak_tflops"], rate["train_share"]
    general = Rate(TERA * peak.value * share.value, share.origin)
    by_stage = here.training if here and not {"peak_tflops", "train_share"} & own.keys() else {}
    sampling = rate["sample_share"] or Rate(share.value, "as in training")
    return Rates(
        device="measured here" if here else by_name,
        training={stage: by_stage.get(stage, general) for stage in config.schedule},
        sampling=Rate(TERA * peak.value * sampling.value, sampling.origin),
        **{key: rate[f"{key}_per_second"] for key in ("captions", "encodes", "texts", "collects")},
        fetch=Rate(1e6 * plan.fetch_mb_per_second, "plan.fetch_mb_per_second"),
        start=rate["start_seconds"],
        light_start=rate["light_start_seconds"],
        peak=Rate(TERA * peak.value, peak.origin),
        disk=here and here.disk,
    )


@dataclass(frozen=True)
class Measured:
    """What `plan --measure` found on this machine: numbers as in the section `plan`, training in FLOP/s by stage, and bytes a
    second written and read."""

    device: Device
    training: dict[str, Rate]
    disk: tuple[Rate, Rate]


def read_measured(config: Config, file: Path = MEASURED) -> Measured | None:
    """None where there is none for this configuration. Raises: UserError if the file is not one."""
    if not file.is_file():
        return None
    value = read_json(file)
    try:
        if value["fits"] != fits(config):
            return None
        machine = value["machine"]
        origin = f"measured on {machine['device']}, {machine['date']}, commit {str(machine['commit'])[:7]}"
        numbers = {key: float(number) for key, number in value["numbers"].items() if key in NUMBERS}
        training = {stage: Rate(float(flops), origin) for stage, flops in value["training_flops_per_second"].items()}
        disk = tuple(Rate(1e6 * float(value["disk_megabytes_per_second"][way]), origin) for way in ("write", "read"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: not a measurement ({error}); delete it, or measure again with `plan --measure`") from error
    return Measured(Device(origin, numbers), training, disk)
