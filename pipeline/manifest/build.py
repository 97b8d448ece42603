"""The manifest of a stage: its shards, the index of the samples to train on, and an account of all others.

Beside the manifest lie the index ({stage}.arrow) and a table of what was left out ({stage}.left_out.parquet). The
account goes from the images seen to those trained on, and adds up.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import INDEX, atomic, file_record, write_json
from pipeline.config.steps import ManifestSlice
from pipeline.errors import UserError
from pipeline.manifest.judge import HASH, Shard, evaluation_hashes, judge, read_shard

LEFT_OUT = pa.schema(
    [("source", pa.string()), ("shard", pa.string()), ("row", pa.int32()), ("key", pa.string()), ("reason", pa.string())]
)


def run(slice_: ManifestSlice, encoded: list[Path], evaluation: list[Path], out: Path) -> None:
    """Write the manifest `out` from encoded sidecars; `evaluation` are sidecars of images that must not be trained on.

    Raises: UserError if the shards do not belong together or no sample is left.
    """
    shards = sorted((read_shard(path) for path in encoded), key=lambda shard: shard.order)
    facts = _common_facts(slice_, shards)
    evaluated = evaluation_hashes(evaluation)
    samples = pd.concat(
        [judge(shard, n, slice_.px, slice_.sources[shard.source].upscale, evaluated) for n, shard in enumerate(shards)],
        ignore_index=True,
    )
    mark_duplicates(samples)
    kept = samples[samples["reason"].isna()]
    counts = _account(slice_, shards, samples)
    if kept.empty:
        raise UserError(f"stage '{slice_.stage}': no sample is left to train on; {_in_words(counts)}")
    files = {"index": _write_index(kept, out), "left_out": _write_left_out(samples, shards, out)}
    entries = [_entry(shard, slice_, int((kept["shard"] == n).sum()), out) for n, shard in enumerate(shards)]
    head = {"kind": "manifest", "stage": slice_.stage, "px": slice_.px, "samples": len(kept), **facts}
    write_json(out, {**head, "files": files, "info": {}, "shards": entries, "counts": counts})


def mark_duplicates(samples: pd.DataFrame) -> None:
    """Of usable samples with the same bytes the first stays; the lines are in the order source, shard, row."""
    usable = samples.loc[samples["reason"].isna(), HASH]
    samples.loc[usable.index[usable.duplicated()], "reason"] = "duplicate"


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
    return {**shapes, "vae": info["vae"], "text_encoder": info["text_encoder"]}


def _account(slice_: ManifestSlice, shards: list[Shard], samples: pd.DataFrame) -> dict[str, Any]:
    """For each source: seen = bad + collected, collected = left_out + trained."""
    counts = {}
    for source in sorted(slice_.sources):
        ledgers = [shard.ledger for shard in shards if shard.source == source]
        reasons = samples.loc[samples["shard"].isin([n for n, s in enumerate(shards) if s.source == source]), "reason"]
        bad = Counter(reason for ledger in ledgers for reason in ledger.loc[ledger["status"] != "ok", "reason"])
        left_out = Counter(reasons.dropna())
        count = {
            "seen": sum(map(len, ledgers)),
            "bad": dict(sorted(bad.items())),
            "collected": len(reasons),
            "left_out": dict(sorted(left_out.items())),
            "trained": int(reasons.isna().sum()),
        }
        assert count["seen"] == bad.total() + count["collected"], f"{source}: the ledger does not add up: {count}"
        assert count["collected"] == left_out.total() + count["trained"], f"{source}: the samples do not add up: {count}"
        counts[source] = count
    return counts


def _in_words(counts: dict[str, Any]) -> str:
    def reasons(table: dict[str, int]) -> str:
        return ", ".join(f"{n} {reason}" for reason, n in table.items()) or "none"

    return "; ".join(
        f"{source}: {count['seen']} seen, bad: {reasons(count['bad'])}, left out: {reasons(count['left_out'])}"
        for source, count in counts.items()
    )


def _write_index(kept: pd.DataFrame, out: Path) -> dict[str, Any]:
    path = out.with_suffix(".arrow")
    table = pa.Table.from_pandas(kept[INDEX.names], schema=INDEX, preserve_index=False).replace_schema_metadata()
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), INDEX) as sink:
        sink.write_table(table.combine_chunks())
    return file_record(path, len(kept), out.parent)


def _write_left_out(samples: pd.DataFrame, shards: list[Shard], out: Path) -> dict[str, Any]:
    path = out.with_name(f"{out.stem}.left_out.parquet")
    gone = samples[samples["reason"].notna()]
    sources, names = zip(*(shard.order for shard in shards), strict=True)
    place = {"source": [sources[n] for n in gone["shard"]], "shard": [names[n] for n in gone["shard"]]}
    columns = {**place, **{name: gone[name].tolist() for name in ("row", "key", "reason")}}
    with atomic(path) as temporary:
        pq.write_table(pa.table(columns, schema=LEFT_OUT), temporary)
    return file_record(path, len(gone), out.parent)


def _entry(shard: Shard, slice_: ManifestSlice, kept: int, out: Path) -> dict[str, Any]:
    def file(name: str) -> dict[str, str]:
        path = os.path.relpath(shard.sidecar.file(name), out.parent)
        return {"path": path, "sha256": shard.sidecar.sha256(name)}

    source, name = shard.order
    role = slice_.sources[source].role
    files = {"latents": file(f"latents-{slice_.px}"), "text": file("text")}
    return {"source": source, "shard": name, "role": role, "rows": shard.rows, "kept": kept, **files}
