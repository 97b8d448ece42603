"""The on-disk contract between stages: schemas, sidecars, hashes, atomic writes.

A file that exists is whole: it is written under a temporary name, flushed to disk and renamed. Beside every shard
stands a small sidecar JSON (rows, bytes, sha256, no times); consumers declare the sidecar, so that touching a large
file reruns nothing and changing its content does.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.fingerprint import canonical_json

BLOCK_ROWS = 256  # rows of a record batch: one sequential read
RECORD = {"path": str, "rows": int, "bytes": int, "sha256": str}  # of a file, in a sidecar
MEND = "`python -m pipeline verify --repair` sets aside what is damaged"

LEDGER = pa.schema(
    [
        ("key", pa.string()),  # stable name of the sample within its source
        ("origin", pa.string()),  # file or archive member it was read from
        ("status", pa.string()),  # ok | bad
        ("reason", pa.string()),  # class of the failure, null if ok
        ("detail", pa.string()),  # the failure in words; of an ok sample, what was passed over
        ("sha256", pa.string()),  # of the bytes as received
        ("phash", pa.string()),  # 64-bit perceptual hash, 16 hex digits
        ("width", pa.int32()),  # as received, upright, in pixels
        ("height", pa.int32()),
        ("captioned", pa.bool_()),  # whether it came with a usable caption
        ("url", pa.string()),
        ("license", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float32())),  # as the source gives them: nsfw, aesthetic, watermark …
    ]
)
TABLE = pa.schema(
    [
        ("id", pa.string()),  # names the sample; of archives the image's name, without folder and suffix
        ("url", pa.string()),
        ("captions", pa.list_(pa.string())),  # in the order of the config's columns
        ("license", pa.string()),
        ("sha256", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float32())),
        ("note", pa.string()),  # what was passed over in the row
        ("fault", pa.string()),  # why the row names no image, null if it does
    ]
)
CAPTIONS = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),  # null where there is none
        ("captioner", pa.string()),  # null for a caption that came with the image
        ("prompt", pa.int16()),  # place in captioning.prompts; null for a given caption or a captioner that takes none
        ("reason", pa.string()),  # why there is no caption, null if there is one
    ]
)
INDEX = pa.schema(
    [
        ("shard", pa.int32()),  # place in the manifest's `shards`
        ("row", pa.int32()),  # row of the latents
        ("text", pa.int32()),  # first row of the text embeddings to choose among
        ("texts", pa.int16()),  # how many rows to choose among, 1 or more
        ("given", pa.int16()),  # how many of these came with the image; they are before those that a model wrote
    ]
)
BUCKET = pa.field("bucket", pa.int16())  # place in the manifest's `buckets`
BUCKETED_INDEX = INDEX.append(BUCKET)  # where latents have the shapes of buckets


def latents_schema(shape: tuple[int, int, int], info: dict[str, Any]) -> pa.Schema:
    """Rows of (key, latent): fp16, C·H·W values in row-major order. `info` says what made them.

    With `buckets` in `info`, [H, W] each, a row has the shape of one of them, none of which has more values than `shape`;
    a column `bucket` says which.
    """
    buckets = "buckets" in info
    values = pa.list_(pa.float16(), -1 if buckets else int(np.prod(shape)))
    metadata = {"shape": json.dumps(shape), "info": canonical_json(info)}
    columns = [pa.field("key", pa.string()), pa.field("latent", values)]
    return pa.schema([*columns, BUCKET] if buckets else columns, metadata=metadata)


def text_schema(shape: tuple[int, int], info: dict[str, Any]) -> pa.Schema:
    """Rows of (key, tokens, length): fp16, L·Dt values; `length` counts the tokens before the padding.

    With `padding` "drop" in `info` a row has length·Dt values, and readers fill up with zeros. With `dtype` "int8" the
    values are int8 and a column `scales`, fp16, has a value a token, by which its values are multiplied.
    """
    drop, small = info.get("padding") == "drop", info.get("dtype") == "int8"
    values = pa.list_(pa.int8() if small else pa.float16(), -1 if drop else int(np.prod(shape)))
    columns = [("key", pa.string()), ("tokens", values), ("length", pa.int32())]
    if small:
        columns.append(("scales", pa.list_(pa.float16(), -1 if drop else shape[0])))
    metadata = {"shape": json.dumps(shape), "info": canonical_json(info)}
    return pa.schema(columns, metadata=metadata)


def fixed_size_list(values: np.ndarray, dtype: type = np.float16) -> pa.FixedSizeListArray:
    """[B, ...] of `dtype` to one Arrow list a row, without a copy."""
    flat = np.ascontiguousarray(values, dtype=dtype).reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


def variable_list(values: Sequence[np.ndarray], dtype: type = np.float16) -> pa.ListArray:
    """Arrays of `dtype` and any sizes, at least one, to one Arrow list each."""
    offsets = np.cumsum([0] + [value.size for value in values], dtype=np.int32)
    flat = np.concatenate([np.asarray(value, dtype=dtype).reshape(-1) for value in values])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well and removed when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync(path.parent)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); make room or fix permissions and run again"
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()


def check_room(path: Path, needed: int) -> None:
    """Raises: UserError if the disk has less room than `needed` bytes for what is to be written as `path`, or into it."""
    free = shutil.disk_usage(path if path.is_dir() else path.parent).free
    if free < needed:
        raise UserError(f"{path}: {needed:,} bytes are needed and {free:,} free; make room and run again")


def fsync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Atomic, indented, keys in the order given."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Raises: UserError naming the file if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable JSON ({error})") from error


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Sidecar:
    """What a stage wrote for one shard. `files` maps a name to its record {path, rows, bytes, sha256}; paths are
    relative to the sidecar's folder."""

    path: Path
    kind: str
    files: dict[str, dict[str, Any]]
    info: dict[str, Any]

    def file(self, name: str) -> Path:
        return Path(os.path.normpath(self.path.parent / self._record(name)["path"]))

    def rows(self, name: str) -> int:
        return self._record(name)["rows"]

    def sha256(self, name: str) -> str:
        return self._record(name)["sha256"]

    def checked(self, name: str) -> Path:
        """The file, for those who read it whole. Raises: UserError if its content is not what was written."""
        file = self.file(name)
        check_content(file, self.sha256(name), self.path)
        return file

    def table(self, name: str, columns: list[str]) -> pa.Table:
        """Columns of a Parquet file. Raises: UserError if its content is not what was written."""
        file = self.checked(name)
        try:
            return pq.read_table(file, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file}: not a readable Parquet file ({error}); {MEND}") from error

    def _record(self, name: str) -> dict[str, Any]:
        if name not in self.files:
            raise UserError(f"{self.path}: names no file '{name}'; delete it and run again")
        return self.files[name]


def check_content(file: Path, sha256: str, origin: Path) -> None:
    """Raises: UserError if the file is not the one of this hash, which `origin` gives."""
    try:
        found = sha256_file(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}); {MEND}") from error
    if found != sha256:
        raise UserError(f"{file}: content differs from the sha256 in {origin}; {MEND}")


def write_sidecar(path: Path, kind: str, files: dict[str, tuple[Path, int]], info: dict[str, Any]) -> Sidecar:
    """Describe finished files (path, rows) beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = {name: file_record(file, rows, path.parent) for name, (file, rows) in files.items()}
    write_json(path, {"kind": kind, "files": records, "info": info})
    return Sidecar(path, kind, records, info)


def file_record(file: Path, rows: int, folder: Path) -> dict[str, Any]:
    """What a sidecar says of a finished file; its path is relative to `folder`."""
    relative = os.path.relpath(file, folder)
    return {"path": relative, "rows": rows, "bytes": file.stat().st_size, "sha256": sha256_file(file)}


def read_sidecar(path: Path, kind: str) -> Sidecar:
    """Raises: UserError if it is missing, of another kind, or a file it names is missing or of another size."""
    value = read_json(path)
    if not isinstance(value, dict) or value.get("kind") != kind:
        raise UserError(f"{path}: not a sidecar of kind '{kind}'")
    if not _is_whole(value):
        raise UserError(f"{path}: damaged, a record of a file is none; delete it and run again")
    sidecar = Sidecar(path, kind, value["files"], value["info"])
    for name, record in sidecar.files.items():
        file = sidecar.file(name)
        if _size(file) != record["bytes"]:
            raise UserError(f"{file}: missing or changed since {path} was written; delete {path} and run again")
    return sidecar


def _is_whole(value: dict[str, Any]) -> bool:
    files, info = value.get("files"), value.get("info")
    if not isinstance(files, dict) or not isinstance(info, dict):
        return False
    records = [record if isinstance(record, dict) else {} for record in files.values()]
    return all(isinstance(record.get(key), kind) for record in records for key, kind in RECORD.items())


def _size(file: Path) -> int | None:
    """In bytes, None if it is not there."""
    try:
        return file.stat().st_size
    except (OSError, ValueError):  # a name may have any letters
        return None
