"""What stands below the tables of a plan, and its numbers as people read them."""

from pipeline.config.sources import AnySource, SyntheticSource
from pipeline.plan import estimate
from pipeline.plan.rates import Rate, Rates
from pipeline.plan.rules import total
from pipeline.plan.whole import Plan
from pipeline.report import words

UNKNOWN = "?"
TERA = 1e12


def lines(plan: Plan) -> list[str]:
    """One a fact."""
    return [*_totals(plan), *_disks(plan), *_origins(plan.rates), *_gaps(plan)]


def _totals(plan: Plan) -> list[str]:
    whole, left, price = total(plan.rules, "whole"), total(plan.rules, "left"), plan.price
    costs = f", {words.dollars(price * whole.device_hours)} at {words.dollars(price)} each" if price else ""
    beside = plan.beside
    gpus = f" on {beside.gpus} GPUs" if beside.gpus else ""
    lines = [
        f"In all {number(whole.device_hours)} device-hours{costs}; {words.duration(whole.wall)} with {beside.jobs} jobs side by "
        f"side{gpus}, one rule after the other."
    ]
    if done := sum(one.done for one in plan.rules):
        jobs = sum(one.jobs for one in plan.rules)
        lines.append(
            f"{done:,} of {jobs:,} jobs have their file already; left are {number(left.device_hours)} device-hours, "
            f"{words.duration(left.wall)}. Whether a file is out of date, `snakemake --dry-run` says."
        )
    return lines


def _disks(plan: Plan) -> list[str]:
    lines = [f"At most {words.size(sum(plan.peak.values()))} on disk, downloads and checkpoints among them."]
    for one in plan.disks:
        short = "" if one.needed <= one.free else ", which is not enough: the run will not start"
        lines.append(
            f"What is left needs {words.size(one.needed)} at {one.folders[0]}, where {words.size(one.free)} are free{short}."
        )
    return lines


def _origins(known: Rates) -> list[str]:
    """Every number that was reckoned with, by where it comes from."""
    by_origin: dict[str, list[str]] = {}
    for rate, text in _told(known):
        by_origin.setdefault(rate.origin, []).append(text)
    found = [f"Reckoned with {words.listed(texts)}: {origin}." for origin, texts in by_origin.items()]
    return [*found, "The section `plan` sets each; `python -m pipeline plan --measure` measures them on this machine."]


def _told(known: Rates) -> list[tuple[Rate, str]]:
    speeds = sorted({(rate.value, rate.origin) for rate in known.training.values()})
    return [
        *((Rate(*speed), f"{speed[0] / TERA:.3g} TFLOP/s in training") for speed in speeds),
        (known.peak, f"{known.peak.value / TERA:.3g} TFLOP/s at peak"),
        (known.sampling, f"{known.sampling.value / TERA:.3g} TFLOP/s in sampling"),
        (known.encodes, f"{known.encodes.value:.4g} latents of 256 px a second"),
        (known.texts, f"{known.texts.value:.4g} text embeddings a second"),
        (known.captions, f"{known.captions.value:.4g} captions a second"),
        (known.collects, f"{known.collects.value:.4g} images a second that a core collects"),
        (known.start, f"{known.start.value:.3g} s until a job has its models"),
        (known.light_start, f"{known.light_start.value:.3g} s until any other works"),
        (known.fetch, f"{known.fetch.value / 1e6:.4g} MB/s fetched"),
        *((rate, f"{rate.value / 1e6:.4g} MB/s {way}") for rate, way in zip(known.disk or (), ("written", "read"), strict=False)),
    ]


def _gaps(plan: Plan) -> list[str]:
    config, lines = plan.config, []
    if unknown := [source.name for source in plan.sources if source.images is None]:
        lines.append(f"{UNKNOWN}: images of {words.listed(unknown)} are not known; sources.NAME.expect.images tells them.")
    if filled := [source.name for source in plan.sources if _may_lack(config.sources[source.name])]:
        lines.append(f"Captions of {words.listed(filled)} are counted as if all were missing.")
    if assumed := estimate.shapes(config).assumed:
        lines.append(f"Not on this machine, so shapes are those of `plan`: {words.listed(list(assumed))}.")
    return lines


def _may_lack(source: AnySource) -> bool:
    return source.caption == "fill" and not isinstance(source, SyntheticSource)


def count(number: float | None) -> str:
    """Images and the like."""
    return UNKNOWN if number is None else words.count(number)


def number(value: float | None) -> str:
    """Hours and the like, in three digits."""
    return UNKNOWN if value is None else words.score(value) if value < 1000 else f"{value:,.0f}"


def dollars(price: float, hours: float) -> str:
    """A dash where there is no price, or nothing to pay."""
    return words.dollars(price * hours) if price and hours else "–"


def size(number: float | None) -> str:
    """Bytes."""
    return UNKNOWN if number is None else words.size(number) if number else "–"
