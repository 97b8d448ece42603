"""Features of the real images, worked out once and kept: every stage, guidance and arm is compared with the same ones."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipeline.fingerprint import canonical_json, digest
from pipeline.tensors import atomic_tensors

NAME = "features"


def kept(folder: Path, facts: dict[str, Any], rows: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Features [rows, D] float32 of the images that `facts` stand for, from `folder`, or else computed and stored there.

    `facts` are all that decides the features, JSON-able. What is there but damaged is computed again, and said so.
    """
    file = folder / f"{digest(facts, 16)}.safetensors"
    if file.exists():
        found, fault = _read(file, canonical_json(facts), rows)
        if found is not None:
            return found
        print(f"{file}: {fault}; computed again", file=sys.stderr, flush=True)
    features = np.ascontiguousarray(compute(), dtype=np.float32)
    metadata = {"facts": canonical_json(facts), "sha256": _sha256(features)}
    with atomic_tensors(file) as temporary:
        save_file({NAME: features}, temporary, metadata)
    return features


def _read(file: Path, facts: str, rows: int) -> tuple[np.ndarray | None, str]:
    """The features, or None and what is wrong with the file."""
    try:
        with safe_open(file, "np") as stored:
            metadata, features = stored.metadata() or {}, stored.get_tensor(NAME)
    except (SafetensorError, OSError) as error:
        return None, f"not readable ({error})"
    if metadata.get("facts") != facts or features.shape[0] != rows:
        return None, "holds the features of other images"
    if metadata.get("sha256") != _sha256(features):
        return None, "its content is not what was written"
    return features, ""


def _sha256(features: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).data).hexdigest()
