"""The manifest of a stage: its shards, the index of the samples to train on, and an account of all others.

Beside the manifest lie the index ({stage}.arrow), that of the samples held out for validation
({stage}.validation.arrow) and a table of what is not trained on ({stage}.left_out.parquet). The account goes from the
images seen to those trained on, and adds up. Lines are in the order source, shard, row.
"""

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import INDEX, atomic, file_record, write_json
from pipeline.config.steps import ManifestSlice
from pipeline.errors import UserError
from pipeline.manifest.judge import HASH, Seen, Shard, evaluation_hashes, judge, read_shard

LEFT_OUT = pa.schema(
    [("source", pa.string()), ("shard", pa.string()), ("row", pa.int32()), ("key", pa.string()), ("reason", pa.string())]
)


def run(slice_: ManifestSlice, encoded: list[Path], evaluation: list[Path], out: Path) -> None:
    """Write the manifest `out` from encoded sidecars; `evaluation` are sidecars of images that must not be trained on.

    Raises: UserError if the shards do not belong together or no sample is left.
    """
    shards = sorted((read_shard(path) for path in encoded), key=lambda shard: shard.order)
    facts = _common_facts(slice_, shards)
    samples, seen = _judge_all(slice_, shards, evaluation_hashes(evaluation))
    mark_duplicates(samples)
    mark_held_out(samples, slice_.held_out, slice_.seed)
    counts = _account(slice_, shards, seen, samples["reason"])
    kept = samples.loc[samples["reason"].isna(), INDEX.names]
    if kept.empty:
        raise UserError(f"stage '{slice_.stage}': no sample is left to train on; {_in_words(counts)}")
    files = {
        "index": _write_index(kept, out.with_suffix(".arrow")),
        "validation": _write_index(samples[samples["reason"] == "held_out"], out.with_name(f"{out.stem}.validation.arrow")),
        "left_out": _write_left_out(samples[samples["reason"].notna()], shards, out),
    }
    trained = np.bincount(kept["shard"], minlength=len(shards)).tolist()
    entries = [_entry(shard, slice_, rows, out) for shard, rows in zip(shards, trained, strict=True)]
    head = {"kind": "manifest", "stage": slice_.stage, "px": slice_.px, "samples": len(kept), **facts}
    head |= {"files": files, "info": {}, "sources": _ranges(counts)}
    write_json(out, {**head, "shards": entries, "counts": counts})


def _judge_all(slice_: ManifestSlice, shards: list[Shard], evaluated: set[str]) -> tuple[pd.DataFrame, list[Seen]]:
    judged = (judge(shard, n, slice_.px, slice_.sources[shard.source].upscale, evaluated) for n, shard in enumerate(shards))
    frames, seen = zip(*judged, strict=True)
    return pd.concat(frames, ignore_index=True), list(seen)


def mark_duplicates(samples: pd.DataFrame) -> None:
    """Of usable samples with the same bytes the first stays."""
    usable = samples.loc[samples["reason"].isna(), HASH]
    samples.loc[usable.index[usable.duplicated()], "reason"] = "duplicate"


def mark_held_out(samples: pd.DataFrame, share: float, seed: int) -> None:
    """Hold a share of the usable samples out of training: those whose mixed hash is below it.

    The choice knows nothing but the image's bytes and the seed, so it is the same in every stage and of every source.
    The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
    """
    salt = np.frombuffer(hashlib.blake2b(f"held out {seed}".encode(), digest_size=8).digest(), dtype="<u8")
    mixed = samples[HASH[0]].to_numpy() ^ salt
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    samples.loc[samples["reason"].isna() & (mixed < np.uint64(int(share * 2**64))), "reason"] = "held_out"


def _common_facts(slice_: ManifestSlice, shards: list[Shard]) -> dict[str, Any]:
    """Shapes and models of all shards. Raises: UserError if they differ, or a shard lacks the resolution."""
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
    return first


def _facts(shard: Shard, px: int) -> dict[str, Any]:
    info = shard.sidecar.info
    shapes = {"latent_shape": info["latents"][str(px)]["shape"], "text_shape": info["text"]["shape"]}
    return {**shapes, "vae": info["vae"], "text_encoder": info["text_encoder"], "text_padding": info["text"]["padding"]}


def _account(slice_: ManifestSlice, shards: list[Shard], seen: list[Seen], reasons: pd.Series) -> dict[str, Any]:
    """For each source: seen = bad + collected, collected = left_out + trained."""
    counts, end = {}, 0
    for source in sorted(slice_.sources):
        mine = [n for n, shard in enumerate(shards) if shard.source == source]
        start, end = end, end + sum(shards[n].rows for n in mine)  # the lines of a source lie together
        found = reasons.iloc[start:end]
        bad = sum((Counter(seen[n].bad) for n in mine), Counter())
        left_out = Counter(found.value_counts().to_dict())
        count = {
            "seen": sum(seen[n].samples for n in mine),
            "bad": dict(sorted(bad.items())),
            "collected": len(found),
            "left_out": dict(sorted(left_out.items())),
            "trained": int(found.isna().sum()),
        }
        assert count["seen"] == bad.total() + count["collected"], f"{source}: the ledger does not add up: {count}"
        assert count["collected"] == left_out.total() + count["trained"], f"{source}: the samples do not add up: {count}"
        counts[source] = count
    return counts


def _ranges(counts: dict[str, Any]) -> dict[str, list[int]]:
    """First row and end of each source in the index."""
    ends = np.cumsum([0] + [count["trained"] for count in counts.values()]).tolist()
    return {source: ends[n : n + 2] for n, source in enumerate(counts)}


def _in_words(counts: dict[str, Any]) -> str:
    def reasons(table: dict[str, int]) -> str:
        return ", ".join(f"{n} {reason}" for reason, n in table.items()) or "none"

    return "; ".join(
        f"{source}: {count['seen']} seen, bad: {reasons(count['bad'])}, left out: {reasons(count['left_out'])}"
        for source, count in counts.items()
    )


def _write_index(chosen: pd.DataFrame, path: Path) -> dict[str, Any]:
    table = pa.Table.from_pandas(chosen[INDEX.names], schema=INDEX, preserve_index=False).replace_schema_metadata()
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), INDEX) as sink:
        sink.write_table(table.combine_chunks())
    return file_record(path, len(chosen), path.parent)


def _write_left_out(gone: pd.DataFrame, shards: list[Shard], out: Path) -> dict[str, Any]:
    path = out.with_name(f"{out.stem}.left_out.parquet")
    place = zip(("source", "shard"), np.array([shard.order for shard in shards]).T, strict=True)
    columns = {name: values[gone["shard"]] for name, values in place} | {name: gone[name] for name in ("row", "key", "reason")}
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pandas(pd.DataFrame(columns), schema=LEFT_OUT, preserve_index=False), temporary)
    return file_record(path, len(gone), out.parent)


def _entry(shard: Shard, slice_: ManifestSlice, kept: int, out: Path) -> dict[str, Any]:
    def file(name: str) -> dict[str, str]:
        path = os.path.relpath(shard.sidecar.file(name), out.parent)
        return {"path": path, "sha256": shard.sidecar.sha256(name)}

    source, name = shard.order
    role = slice_.sources[source].role
    files = {"latents": file(f"latents-{slice_.px}"), "text": file("text")}
    return {"source": source, "shard": name, "role": role, "rows": shard.rows, "kept": kept, **files}
