"""What vouches for each file of a results folder: the hash in a sidecar, manifest or checkpoint, the checksums inside a
picture, the hash inside a file of features, the weights that a copy was made from."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts import Sidecar, sha256_file
from pipeline.fingerprint import digest
from pipeline.verify.content import features_fault, picture_fault, tensors_fault

STATE = "state.json"
DOWNLOADS = "downloads"  # files of others
ASIDE = ".damaged"  # behind the name of what was set aside
KINDS = {  # of the sidecars in each folder of results/
    "tables": "table",
    "data": "images",
    "captions": "captions",
    "latents": "latents",
    "text": "text",
    "encoded": "encoded",
    "manifests": "manifest",
}


class Claim(NamedTuple):
    """`record` says that `file` is whole; `fault` looks, and returns what is wrong, or nothing."""

    file: Path
    record: Path
    kind: str
    fault: Callable[[], str]


class Hashes:
    """sha256 of files. One that has several names, hard links or sidecars, is read once."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], str] = {}

    def of(self, file: Path) -> str:
        stat = file.stat()
        name = (stat.st_dev, stat.st_ino)
        if name not in self._found:
            self._found[name] = sha256_file(file)
        return self._found[name]

    def claim(self, file: Path, sha256: str, record: Path, kind: str, size: int | None = None) -> Claim:
        def fault() -> str:
            try:
                if size is not None and file.stat().st_size != size:
                    return f"not of the {size} bytes that {record} says"
                return "" if self.of(file) == sha256 else f"content differs from the sha256 in {record}"
            except FileNotFoundError:
                return f"missing, {record} names it"
            except OSError as error:
                return f"not readable ({error.strerror})"

        return Claim(file, record, kind, fault)


def claims(folder: Path) -> Iterator[Claim]:
    """All claims on what lies under `folder`, those of JSON files first. A JSON that cannot be read is one too."""
    hashes, stages = Hashes(), []
    for path in _files(folder, "*.json"):
        value, fault = _parsed(path)
        if fault:
            yield Claim(path, path, "checkpoint" if path.name == STATE else "json", lambda fault=fault: fault)
        elif path.name == STATE:
            yield from _checkpoint(path, value, hashes)
        elif wanted := KINDS.get(path.relative_to(folder).parts[0]) or _kind(value):
            yield from _sidecar(path, value, wanted, hashes)
        elif path.name == "summary.json" and "fingerprint" in value:
            stages.append((path, value))
        elif path.name == "model_index.json":
            yield from _model(path, value, folder)
    for path, value in stages:
        yield from _stage(path, value, folder, hashes)
    for path in _files(folder, "*.png"):
        yield Claim(path, path, "picture", lambda path=path: picture_fault(path))
    for path in sorted(folder.glob("work/reference/*.safetensors")):
        yield Claim(path, path, "features", lambda path=path: features_fault(path))


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    """Sorted, without what was fetched, what was set aside, and what was being written when its process was killed."""
    for path in sorted(folder.rglob(pattern)):
        parts = path.relative_to(folder).parts
        if parts[0] != DOWNLOADS and not any(ASIDE in part or part.startswith(".") for part in parts):
            yield path


def _parsed(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON's keys, none if it holds no object, and what is wrong with it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"not JSON ({error})"
    return (value if isinstance(value, dict) else {}), ""


def _kind(value: dict[str, Any]) -> str:
    """Of a sidecar that lies elsewhere; empty if it is none."""
    kind = value.get("kind")
    return kind if kind in KINDS.values() and "files" in value else ""


def _sidecar(path: Path, value: dict[str, Any], kind: str, hashes: Hashes) -> Iterator[Claim]:
    try:
        sidecar = Sidecar(path, value["kind"], dict(value["files"]), value["info"])
        records = [(sidecar.file(name), record["sha256"], path, kind, record["bytes"]) for name, record in sidecar.files.items()]
    except (KeyError, TypeError, ValueError, AttributeError):
        sidecar, records = Sidecar(path, "", {}, {}), []
    if sidecar.kind == kind:
        yield from (hashes.claim(*record) for record in records)
    else:
        yield Claim(path, path, "json", lambda: f"not a sidecar of kind '{kind}'")


def _checkpoint(path: Path, value: dict[str, Any], hashes: Hashes) -> Iterator[Claim]:
    """A checkpoint's files, and state.json itself, by the hash that it holds."""
    fault = "" if _is_whole(value) else "content differs from the sha256 in itself"
    yield Claim(path, path, "checkpoint", lambda: fault)
    if not fault:
        yield from (hashes.claim(path.parent / name, sha256, path, "checkpoint") for name, sha256 in value["files"].items())


def _is_whole(state: dict[str, Any]) -> bool:
    return digest({name: item for name, item in state.items() if name != "sha256"}, 64) == state.get("sha256")


def _stage(path: Path, value: dict[str, Any], folder: Path, hashes: Hashes) -> Iterator[Claim]:
    """The weights of a trained stage, by the checkpoint that they were handed over from, as long as that is there."""
    work = folder / "work" / path.parent.relative_to(folder)
    state = work / str(value["fingerprint"]) / str(value.get("images_seen")).zfill(12) / STATE
    found = _parsed(state)[0] if state.is_file() else {}
    files = found["files"] if _is_whole(found) else {}
    if path.parent.parent.name == "ablation":  # whose arms hand over no more
        files = {name: sha256 for name, sha256 in files.items() if name == "ema.safetensors"}
    yield from (hashes.claim(path.parent / name, sha256, state, "weights") for name, sha256 in files.items())


def _model(path: Path, value: dict[str, Any], folder: Path) -> Iterator[Claim]:
    """The network of the model folder, by the averaged weights of the stage it was made from."""
    trained = value["trained"] if isinstance(value.get("trained"), dict) else {}
    origin = folder / "train" / str(trained.get("stage")) / "ema.safetensors"
    summary = _parsed(origin.with_name("summary.json"))[0] if origin.is_file() else {}
    if trained.get("weights") == "ema" and trained.get("fingerprint") == summary.get("fingerprint"):
        file = path.parent / "transformer" / "diffusion_pytorch_model.safetensors"
        yield Claim(file, path, "model", lambda: tensors_fault(file, origin))
