"""A trained model as a diffusers folder, which carries the code it needs and loads where this program is not.

model_index.json says what the parts are; `transformer` and `scheduler` are always there, `vae`, `text_encoder` and
`tokenizer` unless they stay on the hub.
"""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.artifacts import atomic, read_json, write_json
from pipeline.diffusion import EDM
from pipeline.errors import UserError
from pipeline.export.bundle import bundle
from pipeline.export.frozen import FROZEN, copy_frozen
from pipeline.export.layout import check_state
from pipeline.model import MicroDiTConfig
from pipeline.tensors import atomic_tensors

INDEX, CARD = "model_index.json", "README.md"
CONFIG, WEIGHTS = "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
MODEL_CODE, PIPELINE_CODE = "modeling_microdit", "pipeline"
PARTS = ("transformer", "scheduler", *FROZEN, "tokenizer")
LEVELS = ("sigma_min", "sigma_max", "sigma_data", "rho")
TRAINING_LEVELS = ("p_mean", "p_std")


class ModelFolder(NamedTuple):
    """What a model folder holds.

    `frozen`: where the vae and the text_encoder are, a folder within it or a reference, None where that is not known.
    `info`: px; sampler (steps, guidance, method, interval); frozen (references of the models it was trained with); trained
    (where the weights come from).
    """

    config: MicroDiTConfig
    state: dict[str, Tensor]
    edm: EDM
    frozen: dict[str, str | None]
    info: dict[str, Any]


def save_model_folder(
    folder: Path | str,
    config: MicroDiTConfig,
    state: dict[str, Tensor],
    info: dict[str, Any],
    edm: EDM | None = None,
    card: str | None = None,
    with_frozen: bool = False,
) -> None:
    """Write all parts, the `card` as README.md if there is one, then model_index.json: a folder that has it is whole.

    Frozen models of this machine are copied, those of the hub with `with_frozen` alone. Raises: UserError if the tensors do
    not fit the configuration, or a frozen model is missing.
    """
    folder, edm = Path(folder), edm or EDM()
    check_state(folder, config, state)
    _clear(folder)
    frozen = {name: part for key in FROZEN for name, part in copy_frozen(key, info["frozen"][key], folder, with_frozen).items()}
    _save_weights(folder / WEIGHTS, state)
    write_json(folder / CONFIG, {**_class("MicroDiTModel"), "architecture": config.to_dict()})
    write_json(folder / SCHEDULER, {**_class("EDMEulerScheduler"), **{name: getattr(edm, name) for name in LEVELS}})
    _write(folder / "transformer" / f"{MODEL_CODE}.py", bundle("pipeline.export.diffusers_model"))
    _write(folder / f"{PIPELINE_CODE}.py", bundle("pipeline.export.diffusers_pipeline"))
    if card is not None:
        _write(folder / CARD, card)
    training = {name: getattr(edm, name) for name in TRAINING_LEVELS}
    parts = {"transformer": [MODEL_CODE, "MicroDiTModel"], "scheduler": ["diffusers", "EDMEulerScheduler"], **frozen}
    index = {**_class([PIPELINE_CODE, "MicroDiTPipeline"]), **parts, **info, "trained": {**info["trained"], **training}}
    write_json(folder / INDEX, index)


def _class(name: str | list[str]) -> dict[str, Any]:
    return {"_class_name": name, "_diffusers_version": version("diffusers")}


def _clear(folder: Path) -> None:
    """An old index must never stand beside new parts, nor parts that a new one does not name."""
    if (folder / INDEX).exists():
        (folder / INDEX).unlink()
        for name in PARTS:
            shutil.rmtree(folder / name, ignore_errors=True)


def _save_weights(file: Path, state: dict[str, Tensor]) -> None:
    with atomic_tensors(file) as temporary:
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read


def _write(file: Path, text: str) -> None:
    with atomic(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json. Raises: UserError if there is none, or it is none of a MicroDiT."""
    if not (folder / INDEX).exists() and (folder / "model.safetensors").exists():
        raise UserError(f"{folder}: a model folder of an older version; export it again, with `python -m pipeline model`")
    index = read_json(folder / INDEX)
    missing = {"px", "frozen", "sampler", "trained"} - set(index if isinstance(index, dict) else ())
    if missing or index.get("_class_name") != [PIPELINE_CODE, "MicroDiTPipeline"]:
        raise UserError(f"{folder / INDEX}: not the index of a MicroDiT; export the model again")
    return index


def load_model_folder(folder: Path | str) -> ModelFolder:
    """Raises: UserError naming the file and what is wrong with it."""
    folder = Path(folder)
    index = read_index(folder)
    info = {name: index[name] for name in ("px", "frozen", "sampler", "trained")}
    config, edm = _config(folder / CONFIG), _levels(folder / SCHEDULER, info["trained"])
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: not readable ({error}); export the model again") from error
    check_state(folder / WEIGHTS, config, state)
    frozen = {name: str(folder / name) if (index.get(name) or [None])[0] else info["frozen"][name] for name in FROZEN}
    return ModelFolder(config, state, edm, frozen, info)


def _config(file: Path) -> MicroDiTConfig:
    card = read_json(file)
    try:
        return MicroDiTConfig.from_dict(card["architecture"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file}: not a model's config ({error}); export the model again") from error


def _levels(file: Path, trained: dict[str, Any]) -> EDM:
    levels, training = read_json(file), {name: trained[name] for name in TRAINING_LEVELS if name in trained}
    try:
        return EDM(**{name: levels[name] for name in LEVELS}, **training)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not an EDM scheduler's config ({error}); export the model again") from error
