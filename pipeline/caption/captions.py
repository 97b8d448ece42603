"""A caption for every image of a shard: `keep` what it came with, `fill` in what is missing, or `write` all anew.

Rows are in the shard's order. Nothing is dropped: a row without a caption says why. torch is loaded only when there is
a caption to write.
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
    rows = list(_given(shard))
    wanted = {"keep": [], "fill": [r for r in rows if r["caption"] is None], "write": rows}[slice_.mode]
    model = _write_captions(slice_, settings, shard.file("images"), wanted) if wanted else None
    for row in rows:
        row["reason"] = None if row["caption"] else row["reason"] or "no_caption"
    table = out.with_suffix(".parquet")
    with atomic(table) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=CAPTIONS), temporary)
    write_sidecar(out, "captions", {"captions": (table, len(rows))}, _info(slice_, model, rows))


def _info(slice_: CaptionSlice, model: Row | None, rows: list[Row]) -> dict[str, Any]:
    written = sum(row["captioner"] is not None and row["caption"] is not None for row in rows)
    missing = sum(row["caption"] is None for row in rows)
    counts = {"given": len(rows) - written - missing, "written": written, "missing": missing}
    return {"mode": slice_.mode, "captioner": model, **counts}


def _given(shard: Sidecar) -> Iterator[Row]:
    """One row an image, with the caption it came with, read from the key.json members."""
    file, count = shard.file("images"), 0
    with tarfile.open(file) as tar:
        for member in tar:
            if member.name.endswith(".json"):
                sample = json.load(tar.extractfile(member))
                caption = (sample["caption"] or "").strip() or None
                count += 1
                yield {"key": sample["key"], "caption": caption, "captioner": None, "reason": None}
    if count != shard.rows("images"):
        raise UserError(f"{file}: {count} samples, but {shard.path} says {shard.rows('images')}; delete both and collect again")


def _write_captions(slice_: CaptionSlice, settings: Settings, tar: Path, wanted: list[Row]) -> Row:
    """Fill in `caption`, `captioner` and `reason` of the wanted rows. Returns the identity of the captioner."""
    if slice_.captioner is None:
        raise UserError(f"{tar}: {len(wanted)} images are without a caption and no captioner is named; set models.captioner")
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
