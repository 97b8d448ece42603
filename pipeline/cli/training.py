"""Steps from a manifest to the report page."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import RECORDS, REFERENCE, ConfigOption, EvaluationSidecars, OutOption, Paths, SettingsOption, app
from pipeline.cli.job import job
from pipeline.config import steps as slices
from pipeline.config.evaluation import Ablation
from pipeline.runtime import minutes_left

PANEL = "Steps of the workflow: training, evaluation, report"


@app.command(rich_help_panel=PANEL)
def train(
    config: ConfigOption,
    manifest: Annotated[Path, typer.Option(help="manifest of the stage")],
    work: Annotated[Path, typer.Option(help="folder of checkpoints; the same command goes on from there")],
    out: OutOption,
    parent: Annotated[Path | None, typer.Option(help="folder of the stage before")] = None,
    deadline_minutes: Annotated[float | None, typer.Option(help="wall time of the job: save and stop shortly before it")] = None,
    evaluation_images: EvaluationSidecars = None,
    evaluation_captions: EvaluationSidecars = None,
    settings: SettingsOption = None,
) -> None:
    """Train one stage to its end; run again after an interruption, it goes on from the last checkpoint."""
    from pipeline.train.scores import EvaluationSet
    from pipeline.train.stage import run

    slice_, evaluation = slices.TrainSlice.parse(config), EvaluationSet(evaluation_images or (), evaluation_captions or ())
    given = slices.Settings.read(settings)
    with job("train", out.name, out, given.runtime.device):
        run(slice_, given, manifest, parent, work, out, minutes_left(deadline_minutes), evaluation)


@app.command(rich_help_panel=PANEL)
def sample(
    config: ConfigOption,
    part: Annotated[str, typer.Option(help="the job's number and how many there are, such as 2/8")],
    images: Paths,
    captions: Paths,
    weights: Annotated[Path, typer.Option(help="folder of a trained stage")],
    work: Annotated[Path, typer.Option(help="folder of samples, that of the evaluation; the same command goes on from there")],
    out: OutOption,
    settings: SettingsOption = None,
) -> None:
    """One job's share of the pictures that `evaluate` looks at, which then draws none. OUT is a JSON of their hashes."""
    from pipeline.evaluate.sample import Part
    from pipeline.evaluate.share import run

    share, slice_ = Part.parse(part), slices.EvaluateSlice.parse(config)
    given = slices.Settings.read(settings)
    drawn = f"{slice_.evaluation.weights}-{slice_.evaluation.guidance}"
    with job("sample", f"{weights.name}-{drawn}-{out.stem}", out, given.runtime.device):
        run(slice_, given, images, captions, weights, share, work, out)


@app.command(rich_help_panel=PANEL)
def evaluate(
    config: ConfigOption,
    images: Paths,
    captions: Paths,
    weights: Annotated[Path, typer.Option(help="folder of a trained stage")],
    work: Annotated[Path, typer.Option(help="folder of samples; the same command goes on from there")],
    out: OutOption,
    settings: SettingsOption = None,
    reference: Annotated[Path, typer.Option(help="folder of the real images' features, which all evaluations share")] = REFERENCE,
) -> None:
    """Sample for the captions of the evaluation set and score the images."""
    from pipeline.evaluate.evaluate import run

    name = out.name if out.name == weights.name else f"{weights.name}-{out.name}"
    slice_, given = slices.EvaluateSlice.parse(config), slices.Settings.read(settings)
    with job("evaluate", name, out, given.runtime.device):
        run(slice_, given, images, captions, weights, work, out, reference)


@app.command(rich_help_panel=PANEL)
def guidance(
    stage: Annotated[str, typer.Option(help="the stage that the cards are of")],
    cards: Paths,
    out: OutOption,
) -> None:
    """The scores of one stage by guidance scale, from the cards of its evaluations. OUT is a JSON; a plot lies beside it."""
    from pipeline.report.guidance import run

    run(stage, cards, out)


@app.command(rich_help_panel=PANEL)
def ablation(
    config: ConfigOption,
    folder: Annotated[Path, typer.Option(help="folder of the trainings, one ARM-SEED each, with their evaluations")],
    out: OutOption,
) -> None:
    """Variants at equal training FLOPs: their FIDs over the seeds beside what the paper found, as JSON, table and plot."""
    from pipeline.ablation.compare import run

    run(Ablation.model_validate_json(config), folder, out)


@app.command(rich_help_panel=PANEL)
def card(
    evaluation: Annotated[Path, typer.Option(help="card of the evaluated stage")],
    stages: Paths,
    out: OutOption,
    settings: SettingsOption = None,
) -> None:
    """The evaluation card of the run: the scores, what made them, and seconds and cost of every stage."""
    from pipeline.report.card import run

    run(slices.Settings.read(settings), evaluation, stages, RECORDS, out)


@app.command(rich_help_panel=PANEL)
def report(
    card: Annotated[Path, typer.Option(help="evaluation card of the run")],
    manifests: Paths,
    stages: Paths,
    evaluation: Annotated[Path, typer.Option(help="folder of the evaluation")],
    out: OutOption,
    settings: SettingsOption = None,
    benchmarks: Annotated[Path | None, typer.Option(help="folder of Snakemake's benchmarks")] = None,
    guidance: Annotated[Path | None, typer.Option(help="the guidance sweep, for a section of its own")] = None,
    ablation: Annotated[Path | None, typer.Option(help="the ablation, for a section of its own")] = None,
    plan: Annotated[Path | None, typer.Option(help="the plan that the run was started with; not there: none is shown")] = None,
) -> None:
    """One self-contained HTML page of the run."""
    from pipeline.report.page import Further, run

    further = Further(benchmarks, guidance, ablation, plan)
    run(slices.Settings.read(settings), card, manifests, stages, evaluation, out, further)
