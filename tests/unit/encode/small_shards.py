"""Small webdataset shards with ledgers, written as the contract says: inputs of the tests of caption and encode."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.artifacts import CAPTIONS, LEDGER, write_sidecar


def picture(number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A smooth image that differs from every other number's."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    channels = [np.sin((x * (1 + number % 3) + y) / 9 + number), np.cos(y / 7 + number), np.sin((x - y) / 11 - number)]
    return Image.fromarray(((np.stack(channels, -1) + 1) * 127).astype(np.uint8))


def write_shard(
    sidecar: Path,
    pictures: dict[str, Image.Image],
    captions: dict[str, str | None] | None = None,
    several: dict[str, list[str]] | None = None,
) -> Path:
    """{key: image}, {key: caption} and {key: all captions} to a tar, its ledger and its sidecar."""
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with tarfile.open(sidecar.with_suffix(".tar"), "w") as tar:
        for key, image in pictures.items():
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            digest = hashlib.sha256(buffer.getvalue()).hexdigest()
            sample = {"key": key, "caption": (captions or {}).get(key), "sha256": digest}
            if key in (several or {}):
                sample["captions"] = several[key]
            _add(tar, f"{key}.png", buffer.getvalue())
            _add(tar, f"{key}.json", json.dumps(sample).encode())
            rows.append({"key": key, "status": "ok", "sha256": digest, "width": image.width, "height": image.height})
    pq.write_table(pa.Table.from_pylist(rows, schema=LEDGER), sidecar.with_suffix(".parquet"))
    files = {"images": (sidecar.with_suffix(".tar"), len(rows)), "ledger": (sidecar.with_suffix(".parquet"), len(rows))}
    write_sidecar(sidecar, "images", files, {})
    return sidecar


def write_captions(sidecar: Path, captions: dict[str, str | list[str | None] | None]) -> Path:
    """{key: caption, or a list of them} to a table and its sidecar."""
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    pairs = [(key, text) for key, value in captions.items() for text in (value if isinstance(value, list) else [value])]
    rows = [{"key": key, "caption": text, "reason": None if text else "no_caption"} for key, text in pairs]
    pq.write_table(pa.Table.from_pylist(rows, schema=CAPTIONS), sidecar.with_suffix(".parquet"))
    write_sidecar(sidecar, "captions", {"captions": (sidecar.with_suffix(".parquet"), len(rows))}, {})
    return sidecar


def describe_again(sidecar: Path) -> None:
    """Give a sidecar the hashes of its files as they are now: damage that nobody can tell from them."""
    value = json.loads(sidecar.read_text())
    files = {name: (sidecar.parent / record["path"], record["rows"]) for name, record in value["files"].items()}
    write_sidecar(sidecar, value["kind"], files, value["info"])


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
