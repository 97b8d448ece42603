"""Model folders out of a trained stage or an official checkpoint, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.artifacts import read_json
from pipeline.config.models import ModelRef
from pipeline.diffusion import EDM
from pipeline.errors import UserError
from pipeline.export import official
from pipeline.export.card import model_card
from pipeline.export.folder import load_model_folder, save_model_folder
from pipeline.model import MicroDiTConfig

OFFICIAL_FACTOR = 8  # pixels a latent pixel spans in the autoencoders of all official checkpoints
PAPER_SAMPLER = {"steps": 30, "guidance": 5.0}


def run(weights: Path, out: Path, *, steps: int, guidance: float, manifests: Sequence[Path] = ()) -> None:
    """The averaged weights of a finished stage as the model folder `out`: model.safetensors, a README.md that says what
    it is and, from the stages' manifests, what it was trained on, and a config.json with the architecture, the noise
    levels, the resolution, the frozen models, the sampler's settings (`steps`, `guidance`) that `generate` takes unless
    told otherwise, and where the weights came from.

    Raises: UserError naming the file that is missing or does not fit.
    """
    card, file = read_json(weights / "summary.json"), weights / "ema.safetensors"
    try:
        config, edm = MicroDiTConfig.from_dict(card["model"]), EDM.from_dict(card["diffusion"])
        info = {**_provenance(card), "sampler": {"steps": steps, "guidance": guidance}}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{weights / 'summary.json'}: not a stage's summary ({error}); train that stage again") from error
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: not readable ({error}); train that stage again") from error
    save_model_folder(out, config, state, info, edm, model_card(config, info, manifests))


def _provenance(card: dict[str, Any]) -> dict[str, Any]:
    return {
        "px": card["config"]["stage"]["px"],
        "vae": card["vae"],
        "text_encoder": card["text_encoder"],
        "text_tokens": card["config"]["text_tokens"],
        "trained": {
            "stage": card["stage"],
            "images": card["images_seen_total"],
            "fingerprint": card["fingerprint"],
            "weights": _weights(card),
            "git_commit": card["git_commit"],
        },
    }


def _weights(card: dict[str, Any]) -> str:
    average = card.get("posthoc_ema")
    return f"ema of relative width {average['width']:g}" if average else "ema"


def import_checkpoint(checkpoint: Path, out: Path, vae: str, text_encoder: str) -> None:
    """An official checkpoint (.pt) as the model folder `out`. An empty `vae` or `text_encoder` stays null in its
    config.json: the tensors do not say which models they were trained with, and `generate` asks for them.

    Raises: UserError for a file that is no such checkpoint, or a reference that is none.
    """
    frozen = {"vae": _reference("--vae", vae), "text_encoder": _reference("--text-encoder", text_encoder)}
    config, state = official.import_official(checkpoint)
    info = {
        "px": config.input_size * OFFICIAL_FACTOR,
        **frozen,
        "text_tokens": config.caption_length,
        "sampler": PAPER_SAMPLER,
        "trained": {"imported": checkpoint.name},
    }
    save_model_folder(out, config, state, info)


def _reference(option: str, value: str) -> str | None:
    try:
        return TypeAdapter(ModelRef).validate_python(value) or None
    except ValidationError as error:
        raise UserError(f"{option}: {error.errors()[0]['ctx']['error']}") from error


def export_checkpoint(model: Path, out: Path) -> None:
    """A model folder as a checkpoint with the official names (.pt).

    Raises: UserError if the folder is no model, or `out` cannot be written.
    """
    folder = load_model_folder(model)
    official.export_official(folder.config, folder.state, out)
