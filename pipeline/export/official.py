"""Official MicroDiT checkpoints (.pt) in and out. The tensor names are the same on both sides.

A .pt file is a pickle, and a pickle can run any program. These are only ever read with torch's
weights-only reader, which builds tensors and containers and refuses everything else.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.artifacts import atomic
from pipeline.errors import UserError
from pipeline.export.layout import check_state, infer_config
from pipeline.model import MicroDiTConfig

State = dict[str, Tensor]

ANCHOR = "x_embedder.proj.weight"  # every MicroDiT has it, whatever prefix its trainer put in front
NESTS = (("state", "model"), ("state_dict",), ("model",), ())
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")


def _load(path: Path) -> Any:
    """Raises UserError if the file is missing, broken or holds anything that could run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        found = f"the object {named[1]}" if named else "no plain pickle of tensors"
        raise UserError(
            f"{path}: refused, nothing in it was run: it holds {found}; save the state dictionary alone and import that"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a readable torch checkpoint ({reason}); fetch it again") from error


def _descend(loaded: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        loaded = loaded.get(key) if isinstance(loaded, dict) else None
    return loaded


def _find_state(path: Path, loaded: Any) -> State:
    """The state dictionary within what was loaded, without prefixes.

    With a prefix, tensors outside it belong to other modules (an autoencoder, a text encoder).
    """
    for nest in NESTS:
        found = _descend(loaded, nest)
        if not isinstance(found, dict):
            continue
        named = {WRAPPERS.sub("", str(name)): value for name, value in found.items()}
        prefixes = sorted({name.removesuffix(ANCHOR) for name in named if name.endswith(ANCHOR)})
        if len(prefixes) > 1:
            raise UserError(
                f"{path}: holds several models (prefixes {', '.join(map(repr, prefixes))}); save the one to import alone"
            )
        if prefixes:
            prefix = prefixes[0]
            return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    raise UserError(f"{path}: not a MicroDiT checkpoint; missing: {ANCHOR}")


def import_official(path: Path | str, config: MicroDiTConfig | None = None) -> tuple[MicroDiTConfig, State]:
    """The architecture and the tensors, bit for bit, of an official checkpoint.

    Accepts a plain state dictionary or one under "state_dict", "model" or "state"/"model", with any
    prefix. Without `config` the architecture is worked out from the shapes. Raises UserError (a
    ValueError) of one line for a file that holds other objects than tensors, which are never run, and
    for missing, unexpected or misshaped tensors.
    """
    path = Path(path)
    state = _find_state(path, _load(path))
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(f"{path}: {others[0]} is not a tensor; save the state dictionary alone")
    if config is None:
        return infer_config(path, state), state
    check_state(path, config, state)
    return config, state


def export_official(config: MicroDiTConfig, state: State, path: Path | str) -> None:
    """Write a plain state dictionary with the official names. Raises UserError if it does not fit config."""
    path = Path(path)
    check_state(path, config, state)
    with atomic(path) as temporary:
        torch.save({name: state[name].detach().cpu().contiguous() for name in state}, temporary)
