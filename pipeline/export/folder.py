"""A trained model as a folder: `model.safetensors` and a `config.json` that says what it is."""

from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.artifacts import atomic, read_json, write_json
from pipeline.diffusion import EDM
from pipeline.errors import UserError
from pipeline.export.layout import check_state
from pipeline.model import MicroDiTConfig

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


class ModelFolder(NamedTuple):
    """What a model folder holds."""

    config: MicroDiTConfig
    state: dict[str, Tensor]
    edm: EDM
    info: dict[str, Any]  # the remaining keys of config.json


def save_model_folder(
    folder: Path | str,
    config: MicroDiTConfig,
    state: dict[str, Tensor],
    info: dict[str, Any],
    edm: EDM | None = None,
    card: str | None = None,
) -> None:
    """Write the weights, the `card` as README.md if there is one, then config.json = {"model", "diffusion", ...info}: a
    folder that has it is whole.

    Raises UserError if the tensors do not fit the configuration.
    """
    folder = Path(folder)
    assert not {"model", "diffusion"} & set(info), "info may not replace the model's own keys"
    check_state(folder, config, state)
    (folder / CONFIG).unlink(missing_ok=True)  # an old config must never stand beside new weights
    with atomic(folder / WEIGHTS) as temporary:
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read
    if card is not None:
        with atomic(folder / CARD) as temporary:
            temporary.write_text(card, encoding="utf-8")
    write_json(folder / CONFIG, {"model": config.to_dict(), "diffusion": (edm or EDM()).to_dict(), **info})


def load_model_folder(folder: Path | str) -> ModelFolder:
    """Raises UserError naming the file and what is wrong with it."""
    folder = Path(folder)
    card = read_json(folder / CONFIG)
    try:
        config, edm = MicroDiTConfig.from_dict(card.pop("model")), EDM.from_dict(card.pop("diffusion"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG}: not a model's config ({error})") from error
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: not readable ({error}); export the model again") from error
    check_state(folder / WEIGHTS, config, state)
    return ModelFolder(config, state, edm, card)
