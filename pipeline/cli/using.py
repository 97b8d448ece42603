"""Drawing with a model, and handing it on."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import OutOption, SamplerOption, WithFrozen, app

PANEL = "Use a trained model"


@app.command(rich_help_panel=PANEL)
def generate(
    prompts: Annotated[list[str], typer.Argument(help="what to draw")],
    out: Annotated[Path, typer.Option("--out", "-o", help="a .png for one prompt or a grid; a folder for one file each")] = Path(
        "out.png"
    ),
    model: Annotated[Path, typer.Option(help="folder of a trained model")] = Path("results/model"),
    seed: Annotated[int, typer.Option(min=0, help="seed of the initial noise")] = 0,
    steps: Annotated[int | None, typer.Option(help="steps; the model's own unless given")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="guidance scale, 1 is none; the model's own unless given")] = None,
    sampler: Annotated[str | None, typer.Option(help="heun, dpmpp_2m or euler; the model's own unless given")] = None,
    batch: Annotated[int, typer.Option(min=1, help="images sampled together")] = 16,
    count: Annotated[int, typer.Option(min=1, help="images a prompt")] = 1,
    px: Annotated[int | None, typer.Option(help="resolution; the trained one unless given")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
) -> None:
    """Draw pictures from a trained model."""
    from pipeline.export.generate import run

    drawn = {"steps": steps, "guidance": guidance, "method": sampler}
    run(prompts, out, model, drawn, seed=seed, batch=batch, count=count, px=px, device=device)


@app.command(rich_help_panel=PANEL)
def serve(
    model: Annotated[Path, typer.Option(help="folder of a trained model")] = Path("results/model"),
    results: Annotated[Path, typer.Option(help="folder of the run whose trained stages can be compared")] = Path("results"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="port; 0 takes any that is free")] = 7860,
    host: Annotated[str, typer.Option(help="address; any other lets other machines in, without a password")] = "127.0.0.1",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
) -> None:
    """A local web page to draw pictures on, and to compare the stages of training."""
    from pipeline.serve.server import run

    run(model, results, host=host, port=port, device=device)


@app.command(rich_help_panel=PANEL)
def model(
    weights: Annotated[Path, typer.Option(help="folder of a trained stage")],
    out: OutOption,
    manifests: Annotated[
        list[Path] | None, typer.Option(help="manifests of the stages in their order, for the model card")
    ] = None,
    evaluation: Annotated[Path | None, typer.Option(help="evaluation card of the run, for the model card")] = None,
    steps: Annotated[int, typer.Option(min=2, help="steps that `generate` takes unless told otherwise")] = 30,
    guidance: Annotated[float, typer.Option(min=0, help="guidance scale that `generate` takes unless told otherwise")] = 5.0,
    sampler: SamplerOption = "heun",
    interval: Annotated[
        tuple[float, float] | None, typer.Option(help="noise levels, low and high, between which guidance acts; all unless given")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="the weights of the lowest FID while the stage was trained")] = False,
    with_frozen: WithFrozen = False,
) -> None:
    """The trained model as a diffusers folder, which loads where this program is not."""
    from pipeline.export.trained import run

    drawn = {"method": sampler, "steps": steps, "guidance": guidance, "interval": interval and list(interval)}
    run(weights, out, drawn, manifests=manifests or [], evaluation=evaluation, best=best, with_frozen=with_frozen)


@app.command(rich_help_panel=PANEL)
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


@app.command("push-to-hub", rich_help_panel=PANEL)
def push_to_hub(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME; it is made if it is not there")],
    model: Annotated[Path, typer.Option(help="folder of a trained model")] = Path("results/model"),
    private: Annotated[bool, typer.Option("--private", help="make the repository private")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be sent, and send nothing")] = False,
) -> None:
    """A model folder to the Hugging Face hub, with the token in the environment variable HF_TOKEN."""
    from pipeline.export.push import run

    run(repo, model, private, dry_run)


@app.command("export-program", rich_help_panel=PANEL)
def export_program(
    model: Annotated[Path, typer.Argument(help="folder of a trained model")] = Path("results/model"),
    out: OutOption = Path("model.pt2"),
) -> None:
    """The network of a model folder as a program of torch.export, for any batch."""
    from pipeline.export.program import run

    run(model, out)


@app.command("import-official", rich_help_panel=PANEL)
def import_official(
    checkpoint: Annotated[Path, typer.Argument(help="official checkpoint (.pt), read without running pickled code")],
    out: OutOption = Path("results/imported"),
    vae: Annotated[str, typer.Option(help="frozen VAE the checkpoint was trained with")] = "",
    text_encoder: Annotated[str, typer.Option(help="frozen text encoder the checkpoint was trained with")] = "",
    with_frozen: WithFrozen = False,
) -> None:
    """An official checkpoint to a model folder."""
    from pipeline.export.trained import import_checkpoint

    import_checkpoint(checkpoint, out, vae=vae, text_encoder=text_encoder, with_frozen=with_frozen)


@app.command("export-official", rich_help_panel=PANEL)
def export_official(
    model: Annotated[Path, typer.Argument(help="folder of a trained model")] = Path("results/model"),
    out: OutOption = Path("model.pt"),
) -> None:
    """A model folder to a checkpoint with the official names."""
    from pipeline.export.trained import export_checkpoint

    export_checkpoint(model, out)
