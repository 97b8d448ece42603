"""Text towers of open_clip checkpoints, such as DFN5B ViT-H/14-378: open_clip_config.json beside open_clip's weights."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.frozen.models import OPEN_CLIP_WEIGHTS, Place, hub_file, load_tokenizer
from pipeline.frozen.text.tower import Tokens, padded

PARTS = ("positional_embedding", "token_embedding", "transformer", "ln_final")  # of a text tower; the projection is not used
UNKNOWN = ("hf_model_name", "embed_cls", "tokenizer_mode")  # towers that are models of another library, or of CoCa and CLIPS


@dataclass(frozen=True)
class OpenClipTower:
    """A tower reads all its positions, of which the first L are kept; padding is seen as in training."""

    model: Any
    tokenize: Callable[[Sequence[str], int], Tokens]
    positions: int
    natural: int
    width: int

    def read(self, texts: Sequence[str], length: int) -> Tokens:
        ids, mask = self.tokenize(texts, length)
        return Tokens(pad(ids, (0, self.positions - length), value=self.model.pad_id), mask)

    def embed(self, tokens: Tokens) -> Tensor:
        _, states = self.model(tokens.ids.to(self.model.positional_embedding.device))
        return states[:, : tokens.mask.shape[1]]


def load_open_clip(place: Place, device: torch.device, dtype: torch.dtype) -> OpenClipTower:
    """Raises: UserError if the tower is of a kind that is not known here, or its weights or tokenizer are missing."""
    config = place.config["model_cfg"]
    text = config.get("text_cfg", {})
    if odd := [key for key in UNKNOWN if text.get(key)]:
        raise place.fault(f"its text tower has {odd[0]}, which is not known here; use a plain CLIP or SigLIP tower")
    model = _build(place, {**text, "proj_type": "none", "output_tokens": True}, bool(config.get("quick_gelu")))
    try:
        model.load_state_dict(_text_weights(place))
    except RuntimeError as error:
        raise place.fault(f"its weights are not those of open_clip_config.json: {' '.join(str(error).split())[:200]}") from error
    model = model.to(device, dtype).eval().requires_grad_(False)
    return OpenClipTower(model, _tokenizer(place, text), model.context_length, model.context_length, model.width)


def _build(place: Place, text: dict[str, Any], quick_gelu: bool) -> Any:
    from open_clip.model import _build_text_tower  # what open_clip's own models are built with

    try:
        return _build_text_tower(0, text, quick_gelu)
    except (TypeError, AssertionError) as error:
        raise place.fault(f"open_clip builds no text tower from its config: {error}") from error


def _text_weights(place: Place) -> dict[str, Tensor]:
    """Names as in the tower: in a checkpoint they have `text.` in front, or stand beside those of the image tower."""
    names = ((name.removeprefix("module.").removeprefix("text."), tensor) for name, tensor in _weights(place).items())
    return {name: tensor for name, tensor in names if name.startswith(PARTS)}


def _weights(place: Place) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = _weights_file(place)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0]
        raise place.fault(f"{file.name} cannot be read as tensors alone: {first}") from error
    return loaded.get("state_dict", loaded)


def _weights_file(place: Place) -> Path:
    from huggingface_hub.errors import EntryNotFoundError

    for name in OPEN_CLIP_WEIGHTS:
        if place.revision is None:
            if (file := place.folder / name).is_file():
                return file
            continue
        try:
            return hub_file(place.ref, place.name, name, place.subfolder, place.revision)
        except EntryNotFoundError:
            continue
    raise place.fault(f"no {' or '.join(OPEN_CLIP_WEIGHTS)} beside open_clip_config.json")


def _tokenizer(place: Place, text: dict[str, Any]) -> Callable[[Sequence[str], int], Tokens]:
    """The tokenizer that lies beside the weights if the config names one, or CLIP's own, which open_clip brings along."""
    from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

    options = text.get("tokenizer_kwargs") or {}
    if odd := set(options) - {"clean"}:
        raise place.fault(f"tokenizer_kwargs of its config have {min(odd)}, which is not known here")
    if not text.get("hf_tokenizer_name"):
        simple = SimpleTokenizer(**options)
        return lambda texts, length: _with_mask(simple(list(texts), length), simple.eot_token_id)
    clean, tokenizer = get_clean_fn(options.get("clean", "whitespace")), load_tokenizer(place)
    return lambda texts, length: padded(tokenizer, [clean(text) for text in texts], length)


def _with_mask(ids: Tensor, end: int) -> Tokens:
    """The padding is what comes behind the first end token; its id alone, 0, is also that of an exclamation mark."""
    last = (ids == end).int().argmax(1, keepdim=True)
    return Tokens(ids, (torch.arange(ids.shape[1]) <= last).long())
