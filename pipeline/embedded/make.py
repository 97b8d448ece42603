"""Make what the default run needs: its evaluation set, and its frozen models from scratch."""

from pathlib import Path

from pipeline.embedded.scenes import write_coco
from pipeline.errors import UserError


def run(what: str, out: Path, *, seed: int, images: int, two_objects: int, px: int) -> None:
    """`coco` writes held-out scenes in COCO's format, `two_objects` of the `images` with two objects; `vae`, `clip` and
    `captioner` train that model and save it with its card.

    Raises: UserError for any other `what`.
    """
    if what == "coco":
        write_coco(out, seed=seed, count=images, two_objects=two_objects, split="heldout", px=px)
    elif what == "vae":
        from pipeline.embedded import train_vae

        train_vae.train(out, seed=seed)
    elif what == "clip":
        from pipeline.embedded import train_clip

        train_clip.train(out, seed=seed)
    elif what == "captioner":
        from pipeline.embedded import train_captioner

        train_captioner.train(out, seed=seed)
    else:
        raise UserError(f"embedded: no '{what}'; one of coco, vae, clip, captioner")
