"""Captions for every image of a shard: `keep` what it came with, `fill` in what is missing, `write` all anew, or `add`
to those it came with.

Rows are in the shard's order of images, those of an image next to each other, given captions before written ones. An
image has at least one row, and a row without a caption says why. torch is loaded only when there is a caption to write.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import CAPTIONS, Sidecar, atomic, read_sidecar, write_sidecar
from pipeline.caption.journal import Batch, Written
from pipeline.caption.writing import write_captions
from pipeline.config.schema import Captioning
from pipeline.config.steps import CaptionSlice, Settings
from pipeline.errors import UserError
from pipeline.frozen.models import label

Row = dict[str, Any]


def run(slice_: CaptionSlice, settings: Settings, images: Path, work: Path, out: Path) -> None:
    """Write the captions of the shard that the sidecar `images` names, as a parquet file beside the sidecar `out`.

    What the captioner has written is kept in the folder `work` until then; the same call goes on from there.
    """
    shard, journal = read_sidecar(images, "images"), work / f"{out.stem}.jsonl"
    given = dict(_given(shard, slice_.all_captions))
    wanted = [key for key, texts in given.items() if _is_asked(slice_.mode, texts)]
    model, written = None, {}
    if wanted:
        if slice_.captioner is None:
            what = f"{len(wanted)} images are to get a caption and no captioner is named; set models.captioner"
            raise UserError(f"{shard.file('images')}: {what}")
        model, written = write_captions(slice_, settings, shard, wanted, journal)
    rows = list(_rows(slice_.mode, given, written, model))
    table = out.with_suffix(".parquet")
    with atomic(table) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=CAPTIONS), temporary)
    asked = (slice_.captioning or Captioning()).results() if model else None
    info = {"mode": slice_.mode, "all_captions": slice_.all_captions, "captioner": model, "captioning": asked}
    cut = sum(caption.cut for captions in written.values() for caption in captions)
    write_sidecar(out, "captions", {"captions": (table, len(rows))}, {**info, **_counts(rows, len(given)), "cut": cut})
    journal.unlink(missing_ok=True)


def _counts(rows: list[Row], images: int) -> dict[str, int]:
    """rows = given + written + missing, the last being rows without a caption."""
    missing = sum(row["caption"] is None for row in rows)
    given = sum(row["captioner"] is None for row in rows if row["caption"] is not None)
    return {"images": images, "given": given, "written": len(rows) - missing - given, "missing": missing}


def _is_asked(mode: str, texts: list[str]) -> bool:
    """Whether the captioner writes for an image with these captions."""
    return {"keep": False, "fill": not texts, "write": True, "add": True}[mode]


def _rows(mode: str, given: dict[str, list[str]], written: Batch, model: Row | None) -> Iterator[Row]:
    captioner = label(model) if model else None
    for key, texts in given.items():
        rows = [_row(key, text) for text in texts if mode != "write"]
        rows += [_written_row(key, caption, captioner) for caption in written.get(key, [])]
        yield from rows or [_row(key, None, "no_caption")]


def _row(key: str, caption: str | None, reason: str | None = None) -> Row:
    return {"key": key, "caption": caption, "captioner": None, "prompt": None, "reason": reason}


def _written_row(key: str, caption: Written, captioner: str | None) -> Row:
    reason = None if caption.text else "empty_caption"
    return _row(key, caption.text or None, reason) | {"captioner": captioner, "prompt": caption.prompt}


def _given(shard: Sidecar, all_captions: bool) -> Iterator[tuple[str, list[str]]]:
    """Key and captions of every image, read from the key.json members: the first caption alone, or all that differ."""
    file, count = shard.checked("images"), 0
    with tarfile.open(file) as tar:
        for member in tar:
            if member.name.endswith(".json"):
                sample = json.load(tar.extractfile(member))
                texts = sample.get("captions", [sample["caption"]]) if all_captions else [sample["caption"]]
                count += 1
                yield sample["key"], list(dict.fromkeys(text.strip() for text in texts if text and text.strip()))
    if count != shard.rows("images"):
        raise UserError(f"{file}: {count} samples, but {shard.path} says {shard.rows('images')}; delete both and collect again")
