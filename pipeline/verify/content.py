"""Files that vouch for themselves, or for one another."""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from pipeline.fingerprint import digest

PNG_END = b"\0\0\0\0IEND\xaeB\x60\x82"  # the last chunk, which is always the same
NOT_WRITTEN = "content is not what was written"


def picture_fault(path: Path) -> str:
    """What is wrong with a PNG, by the checksum that each of its parts has."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
        with open(path, "rb") as file:
            file.seek(-len(PNG_END), 2)
            return "" if file.read() == PNG_END else NOT_WRITTEN
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"not a whole picture ({error})"


def features_fault(path: Path) -> str:
    """What is wrong with features of the real images, by the hash among their metadata and their name."""
    try:
        with safe_open(path, "np") as stored:
            metadata, features = stored.metadata() or {}, stored.get_tensor("features")
        named = digest(json.loads(metadata["facts"]), len(path.stem)) == path.stem
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        return f"not readable ({error})"
    same = hashlib.sha256(np.ascontiguousarray(features).data).hexdigest() == metadata.get("sha256")
    return "" if named and same and features.dtype == np.float32 and features.ndim == 2 else NOT_WRITTEN


def tensors_fault(file: Path, origin: Path) -> str:
    """What is wrong with weights that must be those of `origin`. One tensor at a time is in memory."""
    try:
        with safe_open(file, "np") as copy, safe_open(origin, "np") as original:
            if set(copy.keys()) != set(original.keys()):
                return f"has other tensors than {origin}"
            changed = next((name for name in original.keys() if not _equal(copy, original, name)), "")  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        return f"not readable ({error})"
    return f"'{changed}' differs from that in {origin}" if changed else ""


def _equal(copy: safe_open, original: safe_open, name: str) -> bool:
    one, other = copy.get_tensor(name), original.get_tensor(name)
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
