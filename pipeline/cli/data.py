"""Steps from raw images to what a stage trains on."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import ConfigOption, DownloadsOption, OutOption, Paths, SettingsOption, Shard, app
from pipeline.cli.job import job
from pipeline.config import steps as slices

PANEL = "Steps of the workflow: data"


@app.command(rich_help_panel=PANEL)
def table(config: ConfigOption, downloads: DownloadsOption, out: OutOption, settings: SettingsOption = None) -> None:
    """The table of a URL list, or the captions of archives, fetched and sorted, as parquet. OUT is the sidecar."""
    from pipeline.sources.table import run

    slice_ = slices.TableSlice.parse(config)
    with job("table", slice_.name, out):
        run(slice_, slices.Settings.read(settings), downloads, out)


@app.command(rich_help_panel=PANEL)
def collect(
    config: ConfigOption,
    shard: Annotated[int, typer.Argument(help="number of the shard, from 0")],
    downloads: DownloadsOption,
    out: OutOption,
    table: Annotated[Path | None, typer.Option(help="sidecar of the source's table, for kinds that have one")] = None,
    settings: SettingsOption = None,
) -> None:
    """Raw images to one webdataset shard (.tar) and its ledger (.parquet). OUT is the sidecar, SHARD its number."""
    from pipeline.sources.collect import run

    slice_ = slices.CollectSlice.parse(config)
    with job("collect", f"{slice_.name}-{shard:05d}", out):
        run(slice_, slices.Settings.read(settings), shard, table, downloads, out)


@app.command(rich_help_panel=PANEL)
def caption(
    config: ConfigOption,
    images: Shard,
    work: Annotated[Path, typer.Option(help="folder of what the captioner has written so far; a rerun goes on from there")],
    out: OutOption,
    settings: SettingsOption = None,
) -> None:
    """Captions for every image of a shard: kept, filled in, or written by the captioner."""
    from pipeline.caption.captions import run

    slice_, given = slices.CaptionSlice.parse(config), slices.Settings.read(settings)
    with job("caption", _name(out), out, "cpu" if slice_.mode == "keep" else given.runtime.device):
        run(slice_, given, images, work, out)


@app.command(rich_help_panel=PANEL)
def encode(
    config: ConfigOption,
    images: Shard,
    captions: Annotated[Path, typer.Option(help="sidecar of the shard's captions")],
    latents: Annotated[Path, typer.Option(help="folder of the source's latents")],
    text: Annotated[Path, typer.Option(help="folder of the source's text embeddings")],
    out: OutOption,
    settings: SettingsOption = None,
) -> None:
    """VAE latents at every resolution and text embeddings of a shard. What is already there is kept."""
    from pipeline.encode.encode import run

    slice_, given = slices.EncodeSlice.parse(config), slices.Settings.read(settings)
    with job("encode", _name(out), out, given.runtime.device):
        run(slice_, given, images, captions, latents, text, out)


@app.command(rich_help_panel=PANEL)
def manifest(config: ConfigOption, encoded: Paths, evaluation: Paths, evaluation_captions: Paths, out: OutOption) -> None:
    """Which samples a stage trains on, and why the others do not reach it."""
    from pipeline.manifest.build import run

    slice_ = slices.ManifestSlice.parse(config)
    with job("manifest", slice_.stage, out):
        run(slice_, encoded, evaluation, evaluation_captions, out)


def _name(out: Path) -> str:
    return f"{out.parent.name}-{out.stem}"
