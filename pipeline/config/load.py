"""Reading and validating YAML files, with errors for people."""

import reprlib
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from pipeline.config.schema import Config, nearest
from pipeline.config.sources import KINDS
from pipeline.errors import UserError


def load(*files: str | Path) -> Config:
    """Read YAML files, each laid over the one before, and validate.

    Raises: UserError naming the file and key.
    """
    merged: dict[str, Any] = {}
    for file in files:
        try:
            layer = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:  # a date that is none is a ValueError
            raise UserError(f"{file}: {' '.join(str(error).split())}") from error
        except RecursionError as error:
            raise UserError(f"{file}: brackets within brackets, too deep to be read") from error
        if not isinstance(layer, dict):
            raise UserError(f"{file}: must hold keys and values, found {type(layer).__name__}")
        merged = _overlay(merged, layer)
    return validate(merged, where=", ".join(map(str, files)))


def _overlay(base: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in layer.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _overlay(base[key], value) if both else value
    return merged


def validate(values: dict[str, Any], where: str = "config") -> Config:
    """Validate a merged configuration.

    Raises: UserError, one line: file, key, what is wrong, the nearest right key.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {'; '.join(_explain(e, values) for e in error.errors()[:5])}") from error


def _explain(error: Any, values: dict[str, Any]) -> str:
    path = [str(part) for part in error["loc"]]
    if len(path) > 2 and path[0] == "sources" and path[2] in KINDS:
        del path[2]  # the tag that pydantic puts behind a union's name
    key, kind = ".".join(path), error["type"]
    if kind == "extra_forbidden":
        return f"{key}: no such key{nearest(path[-1], _fields(path[:-1], values))}"
    if kind == "missing":
        return f"{key}: missing, give it a value"
    if kind == "value_error":
        message = str(error["ctx"]["error"])
        return f"{key}: {message}" if key else message
    if kind.startswith("union_tag"):
        given = error["input"].get("kind") if isinstance(error["input"], dict) else error["input"]
        return f"{key}.kind: '{given}' is not one of {', '.join(KINDS)}{nearest(str(given), KINDS).split(' (')[0]}"
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, found {reprlib.repr(error['input'])}"


def _fields(path: list[str], values: dict[str, Any]) -> list[str]:
    """Names that are allowed at a place in the configuration."""
    kind: Any = Config
    if len(path) >= 2 and path[0] == "sources":
        kind, path = KINDS[values["sources"][path[1]]["kind"]], path[2:]
    for part in path:
        kind = _value_type(kind, part)
    return list(kind.model_fields)


def _value_type(kind: Any, key: str) -> Any:
    """Type of the value at a key: of a section's field, of a table's values, of an item of a list; without `| None`."""
    inner = kind.model_fields[key].annotation if hasattr(kind, "model_fields") else get_args(kind)[-1]
    return next(part for part in get_args(inner) if part is not NoneType) if NoneType in get_args(inner) else inner
