"""Captions for every image of a shard: `keep` what it came with, `fill` in what is missing, `write` all anew, or `add`
one to those it came with.

Rows are in the shard's order of images, those of an image next to each other, given captions before a written one. An
image has at least one row, and a row without a caption says why. torch is loaded only when there is a caption to write.
"""

import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.artifacts import CAPTIONS, Sidecar, atomic, read_sidecar, write_sidecar
from pipeline.config.steps import CaptionSlice, Settings
from pipeline.errors import UserError
from pipeline.runtime import pick_device, progress

Row = dict[str, Any]


def run(slice_: CaptionSlice, settings: Settings, images: Path, out: Path) -> None:
    """Write the captions of the shard that the sidecar `images` names, as a parquet file beside the sidecar `out`."""
    shard = read_sidecar(images, "images")
    rows, wanted = _rows(slice_.mode, _given(shard, slice_.all_captions))
    model = _write_captions(slice_, settings, shard.file("images"), wanted) if wanted else None
    table = out.with_suffix(".parquet")
    with atomic(table) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=CAPTIONS), temporary)
    info = {"mode": slice_.mode, "all_captions": slice_.all_captions, "captioner": model}
    write_sidecar(out, "captions", {"captions": (table, len(rows))}, {**info, **_counts(rows, shard.rows("images"))})


def _counts(rows: list[Row], images: int) -> dict[str, int]:
    """rows = given + written + missing, the last being rows without a caption."""
    missing = sum(row["caption"] is None for row in rows)
    given = sum(row["captioner"] is None for row in rows if row["caption"] is not None)
    return {"images": images, "given": given, "written": len(rows) - missing - given, "missing": missing}


def _rows(mode: str, given: Iterable[tuple[str, list[str]]]) -> tuple[list[Row], list[Row]]:
    """All rows, and those among them that the captioner is to write."""
    rows: list[Row] = []
    wanted: list[Row] = []
    for key, texts in given:
        kept = [_row(key, text) for text in texts if mode != "write"]
        asked = {"keep": False, "fill": not kept, "write": True, "add": True}[mode]
        if asked or not kept:
            kept.append(_row(key, None, "no_caption"))
        if asked:
            wanted.append(kept[-1])
        rows += kept
    return rows, wanted


def _row(key: str, caption: str | None, reason: str | None = None) -> Row:
    return {"key": key, "caption": caption, "captioner": None, "reason": reason}


def _given(shard: Sidecar, all_captions: bool) -> Iterator[tuple[str, list[str]]]:
    """Key and captions of every image, read from the key.json members: the first caption alone, or all that differ."""
    file, count = shard.file("images"), 0
    with tarfile.open(file) as tar:
        for member in tar:
            if member.name.endswith(".json"):
                sample = json.load(tar.extractfile(member))
                texts = sample.get("captions", [sample["caption"]]) if all_captions else [sample["caption"]]
                count += 1
                yield sample["key"], list(dict.fromkeys(text.strip() for text in texts if text and text.strip()))
    if count != shard.rows("images"):
        raise UserError(f"{file}: {count} samples, but {shard.path} says {shard.rows('images')}; delete both and collect again")


def _write_captions(slice_: CaptionSlice, settings: Settings, tar: Path, wanted: list[Row]) -> Row:
    """Fill in `caption`, `captioner` and `reason` of the wanted rows. Returns the identity of the captioner."""
    if slice_.captioner is None:
        raise UserError(f"{tar}: {len(wanted)} images are to get a caption and no captioner is named; set models.captioner")
    from pipeline.frozen.captioner import load_captioner
    from pipeline.frozen.models import identity, label

    model = identity(slice_.captioner)
    captioner = load_captioner(slice_.captioner, pick_device(settings.runtime.device))
    pending = {row["key"]: row for row in wanted}
    with progress(f"captions {tar.stem}", len(wanted)) as bar:
        for batch in _batches(_pictures(tar, pending), settings.runtime.caption_batch):
            for (row, _), text in zip(batch, captioner.write([picture for _, picture in batch]), strict=True):
                row.update(caption=text or None, captioner=label(model), reason=None if text else "empty_caption")
            bar.update(len(batch))
    return model


def _pictures(tar: Path, pending: dict[str, Row]) -> Iterator[tuple[Row, Image.Image]]:
    """The pending rows with their images, in the shard's order."""
    with tarfile.open(tar) as archive:
        for member in archive:
            key, _, kind = member.name.rpartition(".")
            if kind != "json" and key in pending:
                data = archive.extractfile(member).read()
                yield pending[key], Image.open(io.BytesIO(data)).convert("RGB")


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
