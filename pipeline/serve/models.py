"""What can be drawn with: the final model, and the stages of training before it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.artifacts import read_json
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.export.generate import Artist


class Stage(NamedTuple):
    """A finished stage of training."""

    name: str
    folder: Path
    px: int
    images: int  # seen since the first stage began, counted with repetition
    fingerprint: str


def describe(model: Path) -> dict[str, Any]:
    """What a model folder says of itself: px, sampler, frozen, trained. Reads no weights.

    Raises: UserError if there is no model.
    """
    from pipeline.export.folder import read_index

    return read_index(model)


def load_final(model: Path, device: str) -> "Artist":
    """Raises: UserError naming the file that is missing or does not fit."""
    from pipeline.export.generate import Artist
    from pipeline.runtime import pick_device

    return Artist.load(model, None, pick_device(device))


def load_stage(stage: Stage, final: "Artist", frozen: dict[str, str | None]) -> "Artist":
    """The averaged weights of a stage, with the frozen models of the final one, `frozen`: their references.

    Raises: UserError naming the file that is missing, or a stage that was trained with other ones.
    """
    from pipeline.trained import Trained

    trained = Trained.read(stage.folder)
    drops = trained.config.drop_text_padding
    if (trained.frozen, drops) != (frozen, final.network.config.drop_text_padding):
        raise UserError(f"{stage.folder}: was trained with other frozen models than the final model; name its run by --results")
    network = trained.network().to(final.device).float().eval()
    return replace(final, network=network, edm=trained.edm, px=trained.config.input_size * final.vae.factor)


def finished_stages(results: Path) -> list[Stage]:
    """In the order of training. Raises: UserError naming a summary that is none."""
    stages = [_stage(file) for file in results.glob("train/*/summary.json")]
    return sorted(stages, key=lambda stage: (stage.images, stage.name))


def _stage(file: Path) -> Stage:
    summary = read_json(file)
    try:
        px, images = summary["config"]["stage"]["px"], summary["images_seen_total"]
        return Stage(file.parent.name, file.parent, px, images, summary["fingerprint"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: not a stage's summary ({error}); train that stage again") from error
