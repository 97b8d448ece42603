"""Where a frozen model lies, what identifies it, and how its weights are read.

A reference is `embedded:NAME` (a folder of pipeline/embedded), a local folder, or `hf:OWNER/NAME@REVISION`. Only
safetensors are read, and of open_clip also its .bin, as tensors alone. No code that comes with a model is run unless a
caller says so. Nothing here imports torch.
"""

import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import read_json, sha256_file
from pipeline.errors import UserError
from pipeline.fingerprint import digest

if TYPE_CHECKING:
    import torch

EMBEDDED = Path(__file__).resolve().parent.parent / "embedded"
OPEN_CLIP, OPEN_CLIP_WEIGHTS = "open_clip_config.json", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TRANSFORMERS = (("", "config.json"), ("vae", "config.json"))  # whole diffusers pipelines keep the autoencoder in vae/
# Of a checkpoint in both forms open_clip's is taken: it was trained there, with that tokenizer and padding.
CONFIGS = (("", OPEN_CLIP), *TRANSFORMERS)
READ = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py")  # what decides how a local model behaves
CARD = "card.json"  # how an embedded model was trained: no part of the model


@dataclass(frozen=True)
class Place:
    """A model that was found. `name` is what from_pretrained takes: a folder, or OWNER/NAME at a `revision`, which
    is a commit also where the reference names a branch or tag."""

    ref: str
    name: str
    revision: str | None
    subfolder: str
    config: dict[str, Any]

    @property
    def class_name(self) -> str:
        """As diffusers or transformers write it; "open_clip" for a checkpoint of that library."""
        if "model_cfg" in self.config:
            return "open_clip"
        named = self.config.get("_class_name") or self.config.get("model_type", "model of an unknown class")
        return (self.config.get("architectures") or [named])[0]

    @property
    def folder(self) -> Path:
        return Path(self.name) / self.subfolder

    def options(self) -> dict[str, Any]:
        """Arguments of any from_pretrained."""
        return {
            "pretrained_model_name_or_path": self.name,
            "subfolder": self.subfolder,
            **({"revision": self.revision} if self.revision else {}),
        }

    def fault(self, what: str) -> UserError:
        return UserError(f"model '{self.ref}': {what}")


def locate(ref: str, configs: Sequence[tuple[str, str]] = CONFIGS) -> Place:
    """Find a model by the first of `configs` (folder, file) that is there.

    Raises: UserError naming the reference and what is missing.
    """
    if ref.startswith("hf:"):
        return _locate_hub(ref, configs)
    embedded = ref.startswith("embedded:")
    folder = EMBEDDED / ref.removeprefix("embedded:") if embedded else Path(ref)
    for subfolder, name in configs:
        if (file := folder / subfolder / name).is_file():
            return Place(ref, str(folder), None, subfolder, read_json(file))
    if embedded:
        raise UserError(f"model '{ref}': no such embedded model; there are {', '.join(embedded_models()) or 'none'}")
    missing = "no config.json in this folder" if folder.is_dir() else "no such folder"
    raise UserError(f"model '{ref}': {missing}; give a folder made by save_pretrained, embedded:NAME or hf:OWNER/NAME@REVISION")


def embedded_models() -> list[str]:
    """Names that `embedded:NAME` knows."""
    return sorted(file.parent.name for file in EMBEDDED.glob("*/config.json"))


def _locate_hub(ref: str, configs: Sequence[tuple[str, str]]) -> Place:
    from huggingface_hub.errors import EntryNotFoundError

    name, _, revision = ref.removeprefix("hf:").partition("@")
    cause: Exception | None = None
    for subfolder, config in configs:
        try:
            file = hub_file(ref, name, config, subfolder, revision)
        except EntryNotFoundError as error:  # also where the hub is not asked, or not reached, and the cache has none
            cause = error
        else:
            return Place(ref, name, _commit(file), subfolder, read_json(file))
    raise UserError(
        f"model '{ref}': no config.json at this revision, neither on the hub nor in the local cache ({_first_line(cause)})"
    ) from cause


def hub_file(ref: str, name: str, file: str, subfolder: str, revision: str | None) -> Path:
    """A file of a hub model, from the cache where it is there.

    Raises: huggingface_hub's EntryNotFoundError if there is none; UserError if the hub refuses.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        return Path(hf_hub_download(name, file, subfolder=subfolder or None, revision=revision))
    except EntryNotFoundError:
        raise
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"model '{ref}': not to be had from the hub ({_first_line(error)})") from error


def _commit(file: Path) -> str:
    """The commit of a file in the hub's cache, …/snapshots/COMMIT/…"""
    parts = file.parts
    return parts[len(parts) - parts[::-1].index("snapshots")]


def identity(ref: str) -> dict[str, Any]:
    """What a reference stands for: {ref, class} and `revision` (a hub commit) or `sha256` (content of a folder).

    The hash covers the weights and every file that decides how they are used; a card or a README may change.
    Raises: UserError as `locate`, or if a folder has no safetensors.
    """
    place = locate(ref)
    content = {"revision": place.revision} if place.revision else {"sha256": _content_hash(place)}
    return {"ref": ref, "class": place.class_name, **content}


def _content_hash(place: Place) -> str:
    weights = OPEN_CLIP_WEIGHTS if place.class_name == "open_clip" else ("*.safetensors",)
    if not any(file for pattern in weights for file in place.folder.glob(pattern)):
        raise place.fault(f"no .safetensors in {place.folder}; other weight files are not read, save it with save_pretrained")
    found = {file for pattern in (*READ, *weights) for file in place.folder.glob(pattern)}
    hashes = {file.name: sha256_file(file) for file in sorted(found) if file.name != CARD}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def content(model: dict[str, Any]) -> dict[str, Any]:
    """An identity without its reference: equal for one model at two places."""
    return {key: value for key, value in model.items() if key != "ref"}


def label(model: dict[str, Any]) -> str:
    """An identity in one word: the name and a short commit or hash."""
    return f"{model['ref'].partition('@')[0]}@{model.get('revision', model.get('sha256'))[:12]}"


def short_id(model: dict[str, Any], **facts: Any) -> str:
    """Ten hex digits for paths, from a model and what else decides its output."""
    return digest({"model": content(model), **facts}, 10)


def load_weights(place: Place, cls: Any, device: "torch.device", dtype: "torch.dtype | None" = None, **options: Any) -> Any:
    """`cls.from_pretrained` in `dtype` (float32 unless given), in evaluation mode, frozen, on `device`.

    The libraries themselves keep in float32 what needs it, such as the frequencies of rotary positions.
    Raises: UserError if the weights are missing, incomplete or of another class.
    """
    import torch
    from safetensors import SafetensorError

    _quiet(cls)
    loading = {"dtype": dtype or torch.float32, "use_safetensors": True, "output_loading_info": True}
    try:
        model, report = cls.from_pretrained(**place.options(), **options, **loading)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise place.fault(f"cannot be loaded as {cls.__name__} from safetensors: {_first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        what = f"{len(missing)} weights that {cls.__name__} needs, such as {missing[0]}"
        raise place.fault(f"is a {place.class_name} without {what}")
    return model.to(device).eval().requires_grad_(False)


def _quiet(cls: Any) -> None:
    """No progress bars and reports of unused weights in the logs: what matters is checked and raised."""
    logging = importlib.import_module(f"{cls.__module__.partition('.')[0]}.utils.logging")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_part(place: Place, cls: Any, remote_code: bool = False, **options: Any) -> Any:
    """A tokenizer or processor; `remote_code`: run what comes with it. Raises: UserError if its files are missing."""
    try:
        return cls.from_pretrained(**place.options(), **options, trust_remote_code=remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise place.fault(f"no {cls.__name__.removeprefix('Auto').lower()} beside the weights: {_first_line(error)}") from error


def load_tokenizer(place: Place) -> Any:
    """Of a diffusers folder, which keeps it beside text_encoder/, or from the model's own files.

    Raises: UserError if its files are missing, in which case transformers may make one without any words.
    """
    from transformers import AutoTokenizer

    beside = place.folder.parent / "tokenizer"
    apart = place.folder.name == "text_encoder" and place.revision is None and beside.is_dir()
    tokenizer = load_part(replace(place, name=str(beside)) if apart else place, AutoTokenizer)
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise place.fault("no tokenizer beside the weights; save it there too")
    return tokenizer


def _first_line(error: BaseException | None) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
