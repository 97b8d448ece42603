"""Python code that comes with a model: not run unless the configuration says so, and then at one commit."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts import read_json
from pipeline.frozen.models import Place

NAMING_CODE = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
PINNED = re.compile(r"hf:[^@]+@[0-9a-f]{40}")
CLASSES = ("AutoModelForImageTextToText", "AutoModelForSeq2SeqLM", "AutoModelForCausalLM")


def model_class(place: Place, allowed: bool) -> Any:
    """The auto class of transformers that loads a captioner.

    Raises: UserError if the model needs code of its own and that is not `allowed`, or if what is allowed to run is not
    one thing that stays: the commit of a hub model, or a folder.
    """
    import transformers

    mapped = place.config.get("auto_map", {})
    if allowed:
        _check_pinned(place)
        return getattr(transformers, next((name for name in CLASSES if name in mapped), CLASSES[0]))
    if mapped and place.config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise place.fault("needs the code that comes with it; read that, then set captioning.remote_code: true")
    return transformers.AutoModelForImageTextToText


def _check_pinned(place: Place) -> None:
    if place.revision and not PINNED.fullmatch(place.ref):
        raise place.fault("captioning.remote_code needs a commit of 40 hex digits as its revision: what was read is what runs")
    for other in _other_repositories(place):
        raise place.fault(f"takes code from {other}, of which no commit is pinned; copy both into one folder and name that")


def _other_repositories(place: Place) -> Iterator[str]:
    """Repositories that `auto_map` entries such as OWNER/NAME--module.Class name."""
    from transformers.utils import cached_file

    for name in NAMING_CODE:
        file = cached_file(
            place.name, name, revision=place.revision, subfolder=place.subfolder, _raise_exceptions_for_missing_entries=False
        )
        found = read_json(Path(file)).get("auto_map", {}) if file else {}
        for value in found.values() if isinstance(found, dict) else [found]:
            references = value if isinstance(value, list | tuple) else [value]
            yield from (ref.partition("--")[0] for ref in references if ref and "--" in ref)
