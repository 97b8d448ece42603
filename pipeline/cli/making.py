"""Measuring this machine, and making what the default run needs."""

from typing import Annotated

import typer

from pipeline.cli.app import OutOption, app

PANEL = "Develop"


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}, rich_help_panel=PANEL
)
def bench(context: typer.Context) -> None:
    """Measure this machine: `bench train-step`, `sample`, `loader`, `encode`; each has a --help of its own and prints JSON."""
    from pipeline.bench.command import main as bench_main

    raise SystemExit(bench_main(context.args))


@app.command(rich_help_panel=PANEL)
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
