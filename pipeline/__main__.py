"""`python -m pipeline …`: one sub-command a step.

Rules call these; each also works by hand. `python -m pipeline config STEP` prints the JSON that a step's --config takes.
Steps are imported when called, so that only those which need torch load it.
"""

import sys
from pathlib import Path
from typing import Annotated

if __name__ == "__main__" and sys.argv[1:2] == ["bench"]:  # before the imports: it runs where torch is all there is
    from pipeline.bench.command import main as bench_main

    sys.exit(bench_main(sys.argv[2:]))

import typer
from typer._click.exceptions import ClickException  # typer does not export it

from pipeline.config import STEPS, load, slice_for
from pipeline.config import steps as slices
from pipeline.config.evaluation import Ablation
from pipeline.errors import UserError
from pipeline.runtime import process_record

app = typer.Typer(
    name="pipeline", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.splitlines()[0]
)

ConfigOption = Annotated[str, typer.Option("--config", help="the step's slice of the configuration, as JSON")]
SettingsOption = Annotated[Path | None, typer.Option("--settings", help="the run's record, for runtime and report keys")]
Shard = Annotated[Path, typer.Option("--images", help="sidecar of the shard's images")]
DownloadsOption = Annotated[Path, typer.Option(help="folder for what is fetched; a rerun goes on from there")]
OutOption = Annotated[Path, typer.Option("--out", help="what to write")]
Paths = Annotated[list[Path], typer.Option(help="files in their order, one option each")]

RECORDS = Path("results/work/processes")


@app.command()
def table(config: ConfigOption, downloads: DownloadsOption, out: OutOption, settings: SettingsOption = None) -> None:
    """The table of a URL list, or the captions of archives, fetched and sorted, as parquet. OUT is the sidecar."""
    from pipeline.sources.table import run

    slice_ = slices.TableSlice.parse(config)
    with process_record("table", slice_.name, RECORDS):
        run(slice_, slices.Settings.read(settings), downloads, out)


@app.command()
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
    with process_record("collect", f"{slice_.name}-{shard:05d}", RECORDS):
        run(slice_, slices.Settings.read(settings), shard, table, downloads, out)


@app.command()
def caption(
    config: ConfigOption,
    images: Shard,
    work: Annotated[Path, typer.Option(help="folder of what the captioner has written so far; a rerun goes on from there")],
    out: OutOption,
    settings: SettingsOption = None,
) -> None:
    """Captions for every image of a shard: kept, filled in, or written by the captioner."""
    from pipeline.caption.captions import run

    with process_record("caption", _name(out), RECORDS):
        run(slices.CaptionSlice.parse(config), slices.Settings.read(settings), images, work, out)


@app.command()
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

    with process_record("encode", _name(out), RECORDS):
        run(slices.EncodeSlice.parse(config), slices.Settings.read(settings), images, captions, latents, text, out)


@app.command()
def manifest(config: ConfigOption, encoded: Paths, evaluation: Paths, evaluation_captions: Paths, out: OutOption) -> None:
    """Which samples a stage trains on, and why the others do not reach it."""
    from pipeline.manifest.build import run

    slice_ = slices.ManifestSlice.parse(config)
    with process_record("manifest", slice_.stage, RECORDS):
        run(slice_, encoded, evaluation, evaluation_captions, out)


@app.command("take-down")
def take_down(
    keys: Annotated[list[str] | None, typer.Argument(help="samples, as SOURCE/KEY")] = None,
    from_: Annotated[Path | None, typer.Option("--from", help="file of more, a line each; # begins a remark")] = None,
    file: Annotated[Path, typer.Option(help="file to add them to; filters.take_down names it")] = Path("take_down.txt"),
) -> None:
    """Leave samples out of every manifest that is made from now on, and with them copies of their images."""
    from pipeline.manifest.take_down import run

    run(keys or [], from_, file)


@app.command()
def train(
    config: ConfigOption,
    manifest: Annotated[Path, typer.Option(help="manifest of the stage")],
    work: Annotated[Path, typer.Option(help="folder of checkpoints; the same command goes on from there")],
    out: OutOption,
    parent: Annotated[Path | None, typer.Option(help="folder of the stage before")] = None,
    deadline_minutes: Annotated[float | None, typer.Option(help="wall time of the job: save and stop shortly before it")] = None,
    settings: SettingsOption = None,
) -> None:
    """Train one stage to its end; run again after an interruption, it goes on from the last checkpoint."""
    from pipeline.train.stage import run

    with process_record("train", out.name, RECORDS):
        run(slices.TrainSlice.parse(config), slices.Settings.read(settings), manifest, parent, work, out, deadline_minutes)


@app.command()
def evaluate(
    config: ConfigOption,
    images: Paths,
    captions: Paths,
    weights: Annotated[Path, typer.Option(help="folder of a trained stage")],
    work: Annotated[Path, typer.Option(help="folder of samples; the same command goes on from there")],
    out: OutOption,
    settings: SettingsOption = None,
) -> None:
    """Sample for the captions of the evaluation set and score the images."""
    from pipeline.evaluate.evaluate import run

    with process_record("evaluate", out.name, RECORDS):
        run(slices.EvaluateSlice.parse(config), slices.Settings.read(settings), images, captions, weights, work, out)


@app.command()
def card(
    evaluation: Annotated[Path, typer.Option(help="card of the evaluated stage")],
    stages: Paths,
    out: OutOption,
    settings: SettingsOption = None,
) -> None:
    """The evaluation card of the run: the scores, what made them, and seconds and cost of every stage."""
    from pipeline.report.card import run

    run(slices.Settings.read(settings), evaluation, stages, RECORDS, out)


@app.command()
def ablation(
    config: ConfigOption,
    folder: Annotated[Path, typer.Option(help="folder of the trainings, one ARM-SEED each, with their evaluations")],
    out: OutOption,
) -> None:
    """Variants at equal training FLOPs: their FIDs over the seeds beside what the paper found, as JSON, table and plot."""
    from pipeline.ablation.compare import run

    run(Ablation.model_validate_json(config), folder, out)


@app.command()
def report(
    card: Annotated[Path, typer.Option(help="evaluation card of the run")],
    manifests: Paths,
    stages: Paths,
    evaluation: Annotated[Path, typer.Option(help="folder of the evaluation")],
    out: OutOption,
    settings: SettingsOption = None,
) -> None:
    """One self-contained HTML page of the run."""
    from pipeline.report.page import run

    run(slices.Settings.read(settings), card, manifests, stages, evaluation, out)


@app.command()
def model(
    weights: Annotated[Path, typer.Option(help="folder of a trained stage")],
    out: OutOption,
    manifests: Annotated[
        list[Path] | None, typer.Option(help="manifests of the stages in their order, for the model card")
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Heun steps that `generate` takes unless told otherwise")] = 30,
    guidance: Annotated[float, typer.Option(min=0, help="guidance scale that `generate` takes unless told otherwise")] = 5.0,
) -> None:
    """The trained model as a folder: safetensors, a config that names its frozen models, and a model card."""
    from pipeline.export.trained import run

    run(weights, out, steps=steps, guidance=guidance, manifests=manifests or [])


@app.command()
def ema(
    stage: Annotated[Path, typer.Argument(help="folder of a stage that was trained with posthoc_ema")],
    width: Annotated[float, typer.Option(help="relative width: standard deviation of the average / images seen; 0.05 is 5 %")],
    out: OutOption,
    images: Annotated[
        int | None, typer.Option(min=1, help="images seen in the stage, one of the snapshots'; its end unless given")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="folder of the stage's checkpoints; the workflow's unless given")] = None,
) -> None:
    """The averaged weights of a stage with another width, after training. `model` and `evaluate` take OUT as a stage."""
    from pipeline.train.posthoc import run

    run(stage, width, images, work, out)


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="what to draw")],
    out: Annotated[Path, typer.Option("--out", "-o", help="a .png for one prompt or a grid; a folder for one file each")] = Path(
        "out.png"
    ),
    model: Annotated[Path, typer.Option(help="folder of a trained model")] = Path("results/model"),
    seed: Annotated[int, typer.Option(min=0, help="seed of the initial noise")] = 0,
    steps: Annotated[int | None, typer.Option(help="Heun steps; the model's own unless given")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="guidance scale, 1 is none; the model's own unless given")] = None,
    batch: Annotated[int, typer.Option(min=1, help="images sampled together")] = 16,
    count: Annotated[int, typer.Option(min=1, help="images a prompt")] = 1,
    px: Annotated[int | None, typer.Option(help="resolution; the trained one unless given")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
) -> None:
    """Draw pictures from a trained model."""
    from pipeline.export.generate import run

    run(prompts, out, model, seed=seed, steps=steps, guidance=guidance, batch=batch, count=count, px=px, device=device)


@app.command("import-official")
def import_official(
    checkpoint: Annotated[Path, typer.Argument(help="official checkpoint (.pt), read without running pickled code")],
    out: OutOption = Path("results/imported"),
    vae: Annotated[str, typer.Option(help="frozen VAE the checkpoint was trained with")] = "",
    text_encoder: Annotated[str, typer.Option(help="frozen text encoder the checkpoint was trained with")] = "",
) -> None:
    """An official checkpoint to a model folder."""
    from pipeline.export.trained import import_checkpoint

    import_checkpoint(checkpoint, out, vae=vae, text_encoder=text_encoder)


@app.command("export-official")
def export_official(
    model: Annotated[Path, typer.Argument(help="folder of a trained model")] = Path("results/model"),
    out: OutOption = Path("model.pt"),
) -> None:
    """A model folder to a checkpoint with the official names."""
    from pipeline.export.trained import export_checkpoint

    export_checkpoint(model, out)


@app.command()
def config(
    step: Annotated[str, typer.Argument(help=", ".join(STEPS))],
    source: Annotated[str | None, typer.Option(help="for collect, caption and encode")] = None,
    stage: Annotated[str | None, typer.Option(help="for manifest and train")] = None,
    configfile: Annotated[list[Path], typer.Option(help="YAML files, each laid over the one before")] = [Path("config.yaml")],  # noqa: B006
) -> None:
    """Print the slice of the configuration that a step is given."""
    wildcards = {key: value for key, value in (("source", source), ("stage", stage)) if value is not None}
    if step not in STEPS:
        raise UserError(f"config: no step '{step}'; one of {', '.join(STEPS)}")
    try:
        print(slice_for(load(*configfile), step, **wildcards))
    except (TypeError, KeyError) as error:
        raise UserError(f"config {step}: give --source or --stage as the step needs, and a name that exists ({error})") from error


@app.command()
def plan(
    configfile: Annotated[list[Path], typer.Option(help="YAML files laid over config.yaml, each over the one before")] = [],  # noqa: B006
    json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """What a run fetches, keeps, takes and costs, before it is started. Needs no network."""
    from pipeline.plan.table import run

    run(load("config.yaml", *configfile), json)


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="folder of artifacts")] = Path("results")) -> None:
    """Hash every artifact and compare with what its sidecar says."""
    from pipeline.artifacts import verify as faults

    found = list(faults(folder))
    for fault in found:
        print(fault)
    if found:
        raise UserError(f"{folder}: {len(found)} faults; delete the named sidecars and run again")
    print(f"{folder}: every file is as it was written")


@app.command()
def show(card: Annotated[Path, typer.Argument(help="evaluation card")] = Path("results/fid_coco.json")) -> None:
    """Print an evaluation card as a table."""
    from pipeline.report.table import run

    run(card)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Measure this machine: `bench train-step`, `bench loader`; each has a --help of its own and prints JSON."""
    from pipeline.bench.command import main as bench_main

    raise SystemExit(bench_main(context.args))


@app.command()
def embedded(
    what: Annotated[str, typer.Argument(help="coco: the held-out evaluation set; vae, clip, captioner: train that model")],
    out: OutOption,
    seed: Annotated[int, typer.Option(help="seed of the scenes and of the first weights")] = 0,
    images: Annotated[int, typer.Option(help="coco: images in all")] = 640,
    two_objects: Annotated[int, typer.Option(help="coco: images among them with two objects")] = 128,
    px: Annotated[int, typer.Option(help="coco: width and height of an image")] = 64,
) -> None:
    """Make what the default run needs: its evaluation set, and its frozen models from scratch."""
    from pipeline.embedded.make import run

    run(what, out, seed=seed, images=images, two_objects=two_objects, px=px)


def _name(out: Path) -> str:
    return f"{out.parent.name}-{out.stem}"


def main() -> int:
    """Run the command line. A user's mistake is one line on stderr and exit code 1."""
    try:
        app(standalone_mode=False)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except ClickException as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
