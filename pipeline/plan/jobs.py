"""The jobs that make the data: what each reads, writes and keeps, and how long it takes.

They are those of the rules under workflow/rules, which a test compares with Snakemake's own count.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.config import Config
from pipeline.config.sources import AnySource, CocoSource, has_table, local_files
from pipeline.plan.estimate import HOUR, SourcePlan, sources
from pipeline.plan.rates import Rates

INDEX_BYTES = 16  # of a sample in a manifest
EMBEDDED_COCO = "results/embedded/coco"
EMBEDDED_COCO_BYTES = 6.3e6  # 1,280 images of 64 px in blocks of a disk, and two files about them


@dataclass(frozen=True)
class Job:
    """One job of a rule, in seconds and bytes.

    `output` is the declared file that shows it is done. `kept` are bytes by folder that stay, `scratch` those that are
    there only while it runs. `known` is False where the number of images is not.
    """

    rule: str
    output: str
    start: float  # until its work begins
    work: float = 0.0
    devices: int = 0  # that it holds
    fetched: float = 0.0  # at the speed that all jobs share
    read: float = 0.0
    written: float = 0.0  # all that it ever writes
    kept: dict[str, float] = field(default_factory=dict)
    scratch: dict[str, float] = field(default_factory=dict)
    known: bool = True


def data_jobs(config: Config, rates: Rates) -> Iterator[Job]:
    """Of all sources that the run uses, in their order, then the manifests."""
    planned = sources(config, rates)
    named = [file for source in planned for file in local_files(config.sources[source.name])]
    if any(file.startswith(f"{EMBEDDED_COCO}/") for file in named):
        made = {EMBEDDED_COCO: EMBEDDED_COCO_BYTES}
        start = rates.light_start.value
        yield Job("embedded_coco", f"{EMBEDDED_COCO}/captions.json", start, written=EMBEDDED_COCO_BYTES, kept=made)
    for source in planned:
        yield from _source_jobs(config, rates, source)
    light = rates.light_start.value
    for stage in config.schedule:
        yield _manifest(stage, [source for source in planned if source.name in config.stage_sources(stage)], light)


def _manifest(stage: str, planned: list[SourcePlan], start: float) -> Job:
    known = all(source.images is not None for source in planned)
    read = sum((source.ledgers or 0) + (source.captions or 0) for source in planned)
    made = INDEX_BYTES * sum(source.usable or 0 for source in planned)
    return Job(
        "manifest", f"results/manifests/{stage}.json", start, 0, 0, 0, read, made, {"results/manifests": made}, known=known
    )


def _source_jobs(config: Config, rates: Rates, source: SourcePlan) -> Iterator[Job]:
    chosen = config.sources[source.name]
    if has_table(chosen):
        yield Job("table", f"results/tables/{source.name}.json", rates.light_start.value)
    for shard in range(chosen.shards):
        place = f"{source.name}/{shard:05d}.json"
        yield _collect(config, rates, source, chosen, f"results/data/{place}")
        yield _caption(rates, source, chosen, f"results/captions/{place}")
        if config.resolutions(source.name):
            yield _encode(rates, source, chosen, f"results/encoded/{place}")


def _collect(config: Config, rates: Rates, source: SourcePlan, chosen: AnySource, output: str) -> Job:
    """What is fetched is deleted once a shard is made, unless it is kept, or all shards read it."""
    fetch, start, known = source.fetch / chosen.shards, rates.light_start.value, source.images is not None
    stays = config.runtime.downloads.keep or isinstance(chosen, CocoSource)
    downloads = {f"results/downloads/{source.name}": fetch} if fetch else {}
    made = (source.tars + source.ledgers) / chosen.shards if known else 0.0
    work = source.images / chosen.shards / rates.collects.value if known else 0.0
    kept = {f"results/data/{source.name}": made, **(downloads if stays else {})}
    scratch = {} if stays else downloads
    sizes = {"fetched": fetch, "read": fetch or made, "written": fetch + made}
    return Job("collect", output, start, work, **sizes, kept=kept, scratch=scratch, known=known)


def _caption(rates: Rates, source: SourcePlan, chosen: AnySource, output: str) -> Job:
    writes = chosen.caption != "keep"
    start = (rates.start if writes else rates.light_start).value
    if source.images is None:
        return Job("caption", output, start, devices=1, known=False)
    made = source.captions / chosen.shards
    read = (source.tars if writes else source.ledgers) / chosen.shards
    work, kept = HOUR * source.caption_hours / chosen.shards, {f"results/captions/{source.name}": made}
    return Job("caption", output, start, work, devices=1, read=read, written=made, kept=kept)


def _encode(rates: Rates, source: SourcePlan, chosen: AnySource, output: str) -> Job:
    if source.images is None:
        return Job("encode", output, rates.start.value, devices=1, known=False)
    shards = chosen.shards
    kept = {f"results/latents/{source.name}": source.latents / shards, f"results/text/{source.name}": source.texts / shards}
    read, work = (source.tars + source.captions) / shards, HOUR * source.encode_hours / shards
    return Job("encode", output, rates.start.value, work, devices=1, read=read, written=sum(kept.values()), kept=kept)
