"""The command line itself: options that several sub-commands have, and how it ends."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer._click.exceptions import ClickException  # typer does not export it

from pipeline.errors import UserError

app = typer.Typer(
    name="pipeline",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a text-to-image model from scratch, and use it. Every command has a --help of its own.",
)

ConfigOption = Annotated[str, typer.Option("--config", help="the step's slice of the configuration, as JSON")]
SettingsOption = Annotated[Path | None, typer.Option("--settings", help="the run's record, for runtime and report keys")]
Shard = Annotated[Path, typer.Option("--images", help="sidecar of the shard's images")]
DownloadsOption = Annotated[Path, typer.Option(help="folder for what is fetched; a rerun goes on from there")]
OutOption = Annotated[Path, typer.Option("--out", help="what to write")]
Paths = Annotated[list[Path], typer.Option(help="files in their order, one option each")]
EvaluationSidecars = Annotated[
    list[Path] | None, typer.Option(help="sidecars of the evaluation set, for the scores of evaluation.curve; without any: none")
]
SamplerOption = Annotated[str, typer.Option(help="heun, dpmpp_2m or euler")]
WithFrozen = Annotated[bool, typer.Option("--with-frozen", help="copy frozen models of the hub into the folder: gigabytes")]
RECORDS = Path("results/work/processes")
REFERENCE = Path("results/work/reference")


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
