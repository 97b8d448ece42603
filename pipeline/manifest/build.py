"""The manifest of a stage: its shards, the index of the samples to train on, and an account of all others.

Beside the manifest lie the index ({stage}.arrow), that of the samples held out for validation
({stage}.validation.arrow) and a table of what is not trained on ({stage}.left_out.parquet). The account goes from the
images seen to those trained on, and adds up. Lines are in the order source, shard, row.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import BUCKETED_INDEX, INDEX, atomic, file_record, write_json
from pipeline.config.steps import ManifestSlice
from pipeline.errors import UserError
from pipeline.manifest import reasons, take_down
from pipeline.manifest.account import account, in_words, ranges
from pipeline.manifest.copies import hold_out, leave_out_copies
from pipeline.manifest.judge import Evaluated, Judge, Seen, Shard, read_shard
from pipeline.manifest.samples import Names, Samples

LEFT_OUT = pa.schema(
    [("source", pa.string()), ("shard", pa.string()), ("row", pa.int32()), ("key", pa.string()), ("reason", pa.string())]
)


def run(slice_: ManifestSlice, encoded: list[Path], evaluation: list[Path], evaluation_captions: list[Path], out: Path) -> None:
    """Write the manifest `out` from encoded sidecars; `evaluation` and `evaluation_captions` are sidecars of images and
    captions that must not be trained on.

    Raises: UserError if the shards do not belong together, a line of the take-down file is malformed, or no sample is left.
    """
    filters = slice_.filters
    shards = sorted((read_shard(path) for path in encoded), key=lambda shard: shard.order)
    facts = _common_facts(slice_, shards)
    evaluated = Evaluated.read(evaluation, evaluation_captions if filters.leaked_captions else [])
    taken_down = take_down.read(Path(filters.take_down))
    judge = Judge(slice_, evaluated, taken_down)
    samples, seen = _judge_all(judge, shards)
    _say_unknown(taken_down, slice_, judge)
    leave_out_copies(samples, evaluated.phash, filters.near_duplicates, judge.reasons)
    samples.leave_out(samples.unfit > 0, samples.unfit)
    hold_out(samples, slice_.held_out, slice_.seed, judge.reasons)
    counts = account(slice_.sources, shards, seen, samples, judge)
    if not samples.usable.any():
        raise UserError(f"stage '{slice_.stage}': no sample is left to train on; {in_words(counts)}")
    held_out = samples.reason == judge.reasons.number(reasons.HELD_OUT)
    schema = BUCKETED_INDEX if "buckets" in facts else INDEX
    files = {
        "index": _write_index(samples, samples.usable, schema, out.with_suffix(".arrow")),
        "validation": _write_index(samples, held_out, schema, out.with_name(f"{out.stem}.validation.arrow")),
        "left_out": _write_left_out(samples, shards, seen, judge.reasons, out),
    }
    trained = np.bincount(samples.shard[samples.usable], minlength=len(shards)).tolist()
    entries = [_entry(shard, slice_, rows, out) for shard, rows in zip(shards, trained, strict=True)]
    head = {"kind": "manifest", "stage": slice_.stage, "px": slice_.px, "samples": sum(trained), **facts}
    if "buckets" in facts:
        head["buckets"] = _count_buckets(samples, facts["buckets"])
    head |= {"files": files, "info": {}, "sources": ranges(counts)}
    write_json(out, {**head, "shards": entries, "counts": counts})


def _judge_all(judge: Judge, shards: list[Shard]) -> tuple[Samples, list[Seen]]:
    seen: list[Seen] = []

    def one(shard: Shard) -> Samples:
        samples, account = judge(shard, len(seen))
        seen.append(account)
        return samples

    return Samples.joined(map(one, shards), sum(shard.rows for shard in shards)), seen


def _say_unknown(taken_down: dict[str, set[str]], slice_: ManifestSlice, judge: Judge) -> None:
    """A misspelt key takes nothing down: that must not go unnoticed."""
    named = sum(len(keys) for source, keys in taken_down.items() if source in slice_.sources)
    if judge.taken_down < named:
        missing = named - judge.taken_down
        said = f"{slice_.filters.take_down}: {missing} of {named} lines for this stage's sources name no sample that was seen"
        print(said, file=sys.stderr)


def _common_facts(slice_: ManifestSlice, shards: list[Shard]) -> dict[str, Any]:
    """Shapes, models and, if there are any, buckets of all shards. Raises: UserError if they differ, or a shard lacks the
    resolution."""
    for shard in shards:
        if shard.source not in slice_.sources:
            raise UserError(f"{shard.sidecar.path}: source '{shard.source}' is none of stage '{slice_.stage}'")
        if str(slice_.px) not in shard.sidecar.info["latents"]:
            raise UserError(f"{shard.sidecar.path}: no latents at {slice_.px} px; run encode again")
    first = _facts(shards[0], slice_.px)
    for shard in shards:
        for key, value in _facts(shard, slice_.px).items():
            if value != first[key]:
                differs = f"{key} {value} differs from {first[key]} of {shards[0].sidecar.path}"
                raise UserError(f"{shard.sidecar.path}: {differs}; run encode again for both")
    return {key: value for key, value in first.items() if value is not None}


def _facts(shard: Shard, px: int) -> dict[str, Any]:
    info = shard.sidecar.info
    latents = info["latents"][str(px)]
    shapes = {"latent_shape": latents["shape"], "buckets": latents.get("buckets"), "text_shape": info["text"]["shape"]}
    return {**shapes, "vae": info["vae"], "text_encoder": info["text_encoder"], "text_padding": info["text"]["padding"]}


def _count_buckets(samples: Samples, shapes: list[list[int]]) -> list[dict[str, int]]:
    """Each bucket with its sides, in latent pixels, and how many samples to train on have them."""
    counts = np.bincount(samples.bucket[samples.usable], minlength=len(shapes)).tolist()
    return [{"height": h, "width": w, "samples": count} for (h, w), count in zip(shapes, counts, strict=True)]


def _write_index(samples: Samples, chosen: np.ndarray, schema: pa.Schema, path: Path) -> dict[str, Any]:
    table = pa.table({name: getattr(samples, name)[chosen] for name in schema.names}, schema=schema)
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), schema) as sink:
        sink.write_table(table)
    return file_record(path, len(table), path.parent)


def _write_left_out(samples: Samples, shards: list[Shard], seen: list[Seen], names: Names, out: Path) -> dict[str, Any]:
    """Shard by shard, so that names are not held for all samples."""
    path, all_names, end = out.with_name(f"{out.stem}.left_out.parquet"), pa.array(list(names), pa.string()), 0
    with atomic(path) as temporary, pq.ParquetWriter(temporary, LEFT_OUT) as sink:
        for shard, one in zip(shards, seen, strict=True):
            start, end = end, end + shard.rows
            gone = np.flatnonzero(samples.reason[start:end])
            columns = [pa.repeat(name, len(gone)) for name in shard.order] + [gone.astype(np.int32)]
            columns += [one.keys.take(pa.array(gone)), all_names.take(pa.array(samples.reason[start:end][gone]))]
            sink.write_table(pa.table(columns, schema=LEFT_OUT))
    return file_record(path, int((~samples.usable).sum()), out.parent)


def _entry(shard: Shard, slice_: ManifestSlice, kept: int, out: Path) -> dict[str, Any]:
    def file(name: str) -> dict[str, str]:
        path = os.path.relpath(shard.sidecar.file(name), out.parent)
        return {"path": path, "sha256": shard.sidecar.sha256(name)}

    source, name = shard.order
    role = slice_.sources[source].role
    files = {"latents": file(f"latents-{slice_.px}"), "text": file("text")}
    return {"source": source, "shard": name, "role": role, "rows": shard.rows, "kept": kept, **files}
