"""Model folders out of a trained stage or an official checkpoint, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.artifacts import read_json, sha256_file
from pipeline.config.models import ModelRef
from pipeline.errors import UserError
from pipeline.export import official
from pipeline.export.card import imported_card, model_card, read_evaluation
from pipeline.export.folder import load_model_folder, save_model_folder
from pipeline.trained import Trained

OFFICIAL_FACTOR = 8  # pixels a latent pixel spans in the autoencoders of all official checkpoints
PAPER_SAMPLER = {"steps": 30, "guidance": 5.0}

Facts = dict[str, Any]


def run(
    weights: Path,
    out: Path,
    sampler: Facts,
    *,
    manifests: Sequence[Path] = (),
    evaluation: Path | None = None,
    best: bool = False,
    with_frozen: bool = False,
) -> None:
    """The averaged weights of a finished stage as the model folder `out`, `best`: those of the lowest FID.

    `sampler`: steps, guidance, method and interval that `generate` takes unless told otherwise. From the `manifests` of the
    stages in their order and the `evaluation` card of the run the model card says what it was trained on, how good it is
    and what it cost. `with_frozen`: copy frozen models of the hub too.
    Raises: UserError naming the file that is missing or does not fit, or a card of other weights.
    """
    trained = Trained.read(weights, "best" if best else "ema")
    info = {**_provenance(weights / "summary.json", trained, best), "sampler": sampler}
    scores = read_evaluation(evaluation, sha256_file(trained.file)) if evaluation else None
    card = model_card(trained.config, info, manifests, scores)
    save_model_folder(out, trained.config, trained.state, info, trained.edm, card, with_frozen)


def _provenance(file: Path, trained: Trained, best: bool) -> Facts:
    summary = read_json(file)
    try:
        return {
            "px": summary["config"]["stage"]["px"],
            "frozen": trained.frozen,
            "trained": {
                "stage": summary["stage"],
                "images": trained.images_seen_total,
                "fingerprint": trained.fingerprint,
                "weights": "best" if best else _weights(summary),
                "git_commit": summary["git_commit"],
            },
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: not a stage's summary ({error}); train that stage again") from error


def _weights(summary: Facts) -> str:
    average = summary.get("posthoc_ema")
    return f"ema of relative width {average['width']:g}" if average else "ema"


def import_checkpoint(checkpoint: Path, out: Path, vae: str, text_encoder: str, with_frozen: bool = False) -> None:
    """An official checkpoint (.pt) as the model folder `out`. An empty `vae` or `text_encoder` stays null in its
    model_index.json: the tensors do not say which models they were trained with, and `generate` asks for them.

    Raises: UserError for a file that is no such checkpoint, or a reference that is none or leads to no model.
    """
    frozen = {"vae": _reference("--vae", vae), "text_encoder": _reference("--text-encoder", text_encoder)}
    config, state = official.import_official(checkpoint)
    info = {
        "px": config.input_size * OFFICIAL_FACTOR,
        "frozen": frozen,
        "sampler": PAPER_SAMPLER,
        "trained": {"imported": checkpoint.name},
    }
    save_model_folder(out, config, state, info, card=imported_card(config, info), with_frozen=with_frozen)


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
