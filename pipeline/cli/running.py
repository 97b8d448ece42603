"""What a run will take, what it made, and how good it is."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app
from pipeline.config import STEPS, load, slice_for
from pipeline.errors import UserError

PANEL = "Around a run"


@app.command(rich_help_panel=PANEL)
def plan(
    configfile: Annotated[list[Path], typer.Option(help="YAML files laid over config.yaml, each over the one before")] = [],  # noqa: B006
    jobs: Annotated[int | None, typer.Option(min=1, help="jobs side by side; unless given the profile's, or a core each")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs in all; unless given the profile's, or runtime.gpus")] = None,
    profile: Annotated[Path | None, typer.Option(help="profile of the run, such as workflow/profiles/slurm")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="measure this machine first, for about a minute")] = False,
    json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """What a run fetches, keeps, takes and costs, before it is started, and what of it is done. Needs no network."""
    from pipeline.plan.rules import side
    from pipeline.plan.table import run

    chosen = load("config.yaml", *configfile)
    if measure:
        from pipeline.bench.plan import run as measured

        measured(chosen)
    run(chosen, side(chosen, jobs, gpus, profile), json)


@app.command(rich_help_panel=PANEL)
def show(card: Annotated[Path, typer.Argument(help="evaluation card")] = Path("results/fid_coco.json")) -> None:
    """Print an evaluation card as a table."""
    from pipeline.report.table import run

    run(card)


@app.command(rich_help_panel=PANEL)
def compare(
    a: Annotated[Path, typer.Argument(help="evaluation card, of a run or of one stage")],
    b: Annotated[Path, typer.Argument(help="another")],
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="no differences, so none is refused")] = False,
) -> None:
    """Print two evaluation cards side by side. Scores that were not measured alike are not subtracted."""
    from pipeline.report.compare import run

    run(a, b, side_by_side)


@app.command(rich_help_panel=PANEL)
def verify(
    folder: Annotated[Path, typer.Argument(help="folder of artifacts")] = Path("results"),
    repair: Annotated[bool, typer.Option("--repair", help="set aside what is damaged, so that it is made again")] = False,
) -> None:
    """Hash every artifact and compare with what was written; name what is damaged."""
    from pipeline.verify.command import run

    run(folder, repair)


@app.command(rich_help_panel=PANEL)
def status(
    configfile: Annotated[list[Path], typer.Option(help="the overlays of the run, as Snakemake is given them")] = [],  # noqa: B006
    json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Where a run stands: what is done, what would run again and why, what runs now, what failed. Asks Snakemake."""
    from pipeline.status.command import run

    run(configfile, json)


@app.command("take-down", rich_help_panel=PANEL)
def take_down(
    keys: Annotated[list[str] | None, typer.Argument(help="samples, as SOURCE/KEY")] = None,
    from_: Annotated[Path | None, typer.Option("--from", help="file of more, a line each; # begins a remark")] = None,
    file: Annotated[Path, typer.Option(help="file to add them to; filters.take_down names it")] = Path("take_down.txt"),
) -> None:
    """Leave samples out of every manifest that is made from now on, and with them copies of their images."""
    from pipeline.manifest.take_down import run

    run(keys or [], from_, file)


@app.command(rich_help_panel=PANEL)
def config(
    step: Annotated[str, typer.Argument(help=", ".join(STEPS))],
    source: Annotated[str | None, typer.Option(help="for collect, caption and encode")] = None,
    stage: Annotated[str | None, typer.Option(help="for manifest and train")] = None,
    configfile: Annotated[list[Path], typer.Option(help="YAML files, each laid over the one before")] = [Path("config.yaml")],  # noqa: B006
) -> None:
    """Print what a step's --config takes: its slice of the configuration."""
    wildcards = {key: value for key, value in (("source", source), ("stage", stage)) if value is not None}
    if step not in STEPS:
        raise UserError(f"config: no step '{step}'; one of {', '.join(STEPS)}")
    try:
        print(slice_for(load(*configfile), step, **wildcards))
    except (TypeError, KeyError) as error:
        raise UserError(f"config {step}: give --source or --stage as the step needs, and a name that exists ({error})") from error
