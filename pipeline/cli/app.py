"""The command line itself: options that several sub-commands have, and how it ends."""

import errno
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
# What torch and Python say where they have no exception of its own for it.
NO_MEMORY = ("DefaultCPUAllocator", "CUDA out of memory", "can't start new thread")
LESS = "lower the step's batch or workers under `runtime`, or give it more memory; the same command goes on"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # of the machine, not of this program, whichever file it is


def main() -> int:
    """Run the command line. A user's mistake, a full disk and too little memory are one line on stderr and exit code 1."""
    try:
        return app(standalone_mode=False) or 0  # an exit code after Ctrl-C, else nothing
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except ClickException as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError, ValueError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in NO_MEMORY):
            raise
        print(f"error: out of memory ({' '.join(str(error).split())[:200] or 'of this machine'}); {LESS}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = error.filename or Path.cwd()
        print(
            f"error: {where}: cannot be written ({error.strerror}); make room or fix permissions and run again", file=sys.stderr
        )
        return 1
