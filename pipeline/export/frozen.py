"""The frozen models of a model folder: copied file by file, so that they are what the network was trained with."""

import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.artifacts import atomic, read_json, write_json
from pipeline.export.open_clip import as_clip
from pipeline.frozen.families import AUTOENCODERS, CLIP, SIGLIP, T5, text_family
from pipeline.frozen.models import Place, locate
from pipeline.tensors import atomic_tensors

FROZEN = ("vae", "text_encoder")
STEMS = {"vae": "diffusion_pytorch_model", "text_encoder": "model"}  # names that diffusers and transformers give weights
TOKENIZER = ("tokenizer*.json", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.jinja")
WHOLE = {"clip": CLIP, "siglip": SIGLIP}  # families whose checkpoints may hold an image tower too
NOT_HERE = [None, None]  # how a model_index.json says that a part is not in the folder

Parts = dict[str, list[str | None]]


def copy_frozen(kind: str, reference: str | None, folder: Path, from_hub: bool) -> Parts:
    """Copy the `vae` or the `text_encoder`, with its tokenizer, into `folder`. A model of the hub stays there unless
    `from_hub`. Returns the parts of a model_index.json, [library, class] by name.

    Raises: UserError if there is no such model.
    """
    copy, names = (_copy_vae, ("vae",)) if kind == "vae" else (_copy_text_encoder, ("text_encoder", "tokenizer"))
    if reference is None or (reference.startswith("hf:") and not from_hub):
        return dict.fromkeys(names, NOT_HERE)
    return copy(locate(reference), folder)


def _copy_vae(place: Place, folder: Path) -> Parts:
    if place.class_name not in AUTOENCODERS:
        raise place.fault(f"is a {place.class_name}; a model folder takes {', '.join(AUTOENCODERS)} of diffusers")
    source = _source(place)
    for file in [source / "config.json", *_weights(place, source, STEMS["vae"])]:
        _copy(file, folder / "vae")
    return {"vae": ["diffusers", place.class_name]}


def _copy_text_encoder(place: Place, folder: Path) -> Parts:
    family, target = text_family(place), folder / "text_encoder"
    if family == "open_clip":
        as_clip(place, folder)
        return {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    source = _source(place)
    weights = _weights(place, source, STEMS["text_encoder"])
    if family in WHOLE and "text_config" in place.config and len(weights) == 1:
        _copy_tower(place.config, weights[0], target, WHOLE[family])
    else:
        for file in [source / "config.json", *weights]:
            _copy(file, target)
    for file in (file for pattern in TOKENIZER for file in sorted(source.glob(pattern))):
        _copy(file, folder / "tokenizer")
    named = {**CLIP, **SIGLIP, **T5}.get(place.config["model_type"], place.class_name)
    settings = source / "tokenizer_config.json"
    tokenizer = (read_json(settings) if settings.is_file() else {}).get("tokenizer_class") or "PreTrainedTokenizerFast"
    return {"text_encoder": ["transformers", named], "tokenizer": ["transformers", tokenizer]}


def _copy_tower(config: dict[str, Any], weights: Path, folder: Path, classes: dict[str, str]) -> None:
    """The text tower of a model that has two."""
    text = config["text_config"]
    kind = text.get("model_type") or f"{config['model_type']}_text_model"
    with safe_open(weights, "pt") as file:
        tower = {name: file.get_tensor(name) for name in file.keys() if name.startswith("text_model.")}  # noqa: SIM118
    with atomic_tensors(folder / f"{STEMS['text_encoder']}.safetensors") as temporary:
        save_file(tower, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)
    described = {"architectures": [classes[kind]], **text, "model_type": kind, "dtype": config.get("dtype", "float32")}
    write_json(folder / "config.json", described)


def _source(place: Place) -> Path:
    """Where the files are, fetched from the hub if they are there."""
    if place.revision is None:
        return place.folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    inside = f"{place.subfolder}/" if place.subfolder else ""
    patterns = [f"{inside}{pattern}" for pattern in ("*.json", "*.safetensors", *TOKENIZER)]
    try:
        return Path(snapshot_download(place.name, revision=place.revision, allow_patterns=patterns)) / place.subfolder
    except (HfHubHTTPError, OSError) as error:
        raise place.fault(f"not to be had from the hub ({str(error).partition(chr(10))[0]})") from error


def _weights(place: Place, source: Path, stem: str) -> list[Path]:
    """Safetensors under the name that the library looks for, in one file or in several with their index."""
    if (single := source / f"{stem}.safetensors").is_file():
        return [single]
    if (index := source / f"{stem}.safetensors.index.json").is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
        return [index, *(source / Path(name).name for name in names)]
    raise place.fault(f"no {stem}.safetensors in {source}; save it with save_pretrained")


def _copy(file: Path, folder: Path) -> None:
    with atomic(folder / file.name) as temporary:
        shutil.copyfile(file, temporary)
