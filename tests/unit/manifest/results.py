"""Artifacts of the steps before the manifest, for tests of the manifest."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import (
    CAPTIONS,
    INDEX,
    LEDGER,
    fixed_size_list,
    latents_schema,
    read_json,
    text_schema,
    write_sidecar,
)
from pipeline.config.steps import ManifestSlice
from pipeline.dataset import Manifest
from pipeline.manifest.build import run

LATENT, TEXT = (2, 1, 1), (2, 3)
VAE, ENCODER = {"ref": "embedded:vae", "sha256": "1" * 64}, {"ref": "embedded:clip", "sha256": "2" * 64}


def sample(
    content: int, *captions: str | None, side: int = 64, bad: str | None = None, latent: str | None = None, **facts: object
) -> dict:
    """One image: equal `content` means equal bytes; `bad`: it ended in the ledger; `latent`: its latent is unusable;
    `facts`: more columns of the ledger. The embedding of the caption "inf" is unusable, one that begins with "model:" was
    written by one; without `captions` it has a usable one."""
    return {"content": content, "captions": captions or ("c",), "side": side, "bad": bad, "latent": latent, "facts": facts}


def near(content: int, *bits: int, **facts: object) -> dict:
    """An image whose perceptual hash differs from 0f0f… in these bits."""
    return sample(content, phash=f"{0x0F0F_0F0F_0F0F_0F0F ^ sum(1 << bit for bit in bits):016x}", **facts)


def usable(caption: str | None) -> bool:
    return caption not in (None, "inf")


def written(caption: str | None) -> bool:
    return caption is not None and caption.startswith("model:")


class Results:
    """Artifacts of several sources, as the steps before the manifest write them."""

    def __init__(self, root: Path) -> None:
        self.root, self.encoded, self.evaluation, self.evaluation_captions = root, [], [], []

    def images(self, source: str, shard: str, samples: list[dict]) -> tuple[Path, list[dict]]:
        out = self.root / "data" / source / f"{shard}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            {
                "key": f"{source}{shard}-{n}", "status": "bad" if s["bad"] else "ok", "reason": s["bad"],
                "sha256": hashlib.sha256(str(s["content"]).encode()).hexdigest(), "width": s["side"], "height": s["side"] + 9,
            } | s["facts"]
            for n, s in enumerate(samples)
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(lines, schema=LEDGER), out.with_suffix(".parquet"))
        out.with_suffix(".tar").write_text(json.dumps(samples))
        kept = [line | s for line, s in zip(lines, samples, strict=True) if not s["bad"]]
        files = {"images": (out.with_suffix(".tar"), len(kept)), "ledger": (out.with_suffix(".parquet"), len(lines))}
        write_sidecar(out, "images", files, {})
        return out, kept

    def captions(self, source: str, shard: str, kept: list[dict]) -> Path:
        out = self.root / "captions" / source / f"{shard}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            {
                "key": s["key"], "caption": c, "reason": None if c else "no_caption",
                "captioner": "blip@1" if written(c) else None,
            }
            for s in kept for c in s["captions"]
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(lines, schema=CAPTIONS), out.with_suffix(".parquet"))
        write_sidecar(out, "captions", {"captions": (out.with_suffix(".parquet"), len(lines))}, {})
        return out

    def add(
        self, source: str, samples: list[dict], shard: str = "00000", px: int = 32, vae: dict = VAE, latent=LATENT,
        padding: str = "attend",
    ) -> Path:  # fmt: skip
        """Collect, caption and encode. Row n of a shard has n in its latent, and in its texts, whatever their rows."""
        images, kept = self.images(source, shard, samples)
        captions = self.captions(source, shard, kept)
        schemas = {f"latents-{px}": latents_schema(latent, {}), "text": text_schema(TEXT, {})}
        files = {}
        for name, schema in schemas.items():
            file = self.root / "arrow" / source / name / f"{shard}.arrow"
            counts = [len(s["captions"]) if name == "text" else 1 for s in kept]
            numbers = np.repeat(np.arange(len(kept)), counts)
            _write_arrow(file, schema, [kept[n]["key"] for n in numbers], numbers)
            files[name] = file, len(numbers)
        bad_rows = {str(n): s["latent"] for n, s in enumerate(kept) if s["latent"]}
        captioned = enumerate(c for s in kept for c in s["captions"])
        text = {"shape": TEXT, "bad_rows": {str(n): "not_finite" for n, c in captioned if c == "inf"}, "padding": padding}
        inputs = {
            kind: {"path": f"../../{path.relative_to(self.root)}", "sha256": read_json(path)["files"][kind]["sha256"]}
            for kind, path in (("images", images), ("captions", captions))
        }
        facts = {"source": source, "shard": shard, **inputs, "vae": vae, "text_encoder": ENCODER}
        shapes = {"latents": {str(px): {"shape": latent, "bad_rows": bad_rows}}, "text": text}
        out = self.root / "encoded" / source / f"{shard}.json"
        write_sidecar(out, "encoded", files, {**facts, **shapes})
        self.encoded.append(out)
        return out

    def evaluate(self, samples: list[dict], *captions: str) -> None:
        """`captions` are those of every image."""
        samples = [s | {"captions": captions or s["captions"]} for s in samples]
        images, kept = self.images("coco", "00000", samples)
        self.evaluation.append(images)
        self.evaluation_captions.append(self.captions("coco", "00000", kept))

    def build(
        self, px: int = 32, upscale: bool = False, stage: str = "low", filters: dict | None = None, **choice: float
    ) -> Manifest:
        sources = {path.parent.name: {"role": "real", "upscale": upscale} for path in self.encoded}
        out = self.root / "manifests" / f"{stage}.json"
        filters = {"take_down": str(self.root / "take_down.txt"), **(filters or {})}
        slice_ = ManifestSlice(stage=stage, px=px, sources=sources, filters=filters, **choice)
        run(slice_, self.encoded, self.evaluation, self.evaluation_captions, out)
        return Manifest.read(out)

    def left_out(self, stage: str = "low") -> list[tuple[str, str]]:
        table = pd.read_parquet(self.root / "manifests" / f"{stage}.left_out.parquet")
        return list(zip(table["key"], table["reason"], strict=True))


def index_of(manifest: Manifest, name: str = "index") -> list[tuple[int, ...]]:
    """(shard, row, text, texts, given) of every line of an index."""
    with pa.ipc.open_file(str(manifest.path.parent / manifest.value["files"][name]["path"])) as file:
        table = file.read_all()
    assert table.schema.equals(INDEX) and len(table) == manifest.value["files"][name]["rows"]
    return list(zip(*table.to_pydict().values(), strict=True))


def keys_of(manifest: Manifest, name: str = "index") -> set[str]:
    """Keys of the images of an index."""
    shards = [pd.read_parquet(_ledger(manifest, n)).query("status == 'ok'")["key"] for n in range(len(manifest.shards))]
    return {shards[shard].iloc[row] for shard, row, *_ in index_of(manifest, name)}


def _ledger(manifest: Manifest, shard: int) -> Path:
    entry = manifest.shards[shard]
    return manifest.path.parent.parent / "data" / entry["source"] / f"{entry['shard']}.parquet"


def _write_arrow(file: Path, schema: pa.Schema, keys: list[str], numbers: np.ndarray) -> None:
    """Every row holds its number in every value."""
    shape = json.loads(schema.metadata[b"shape"])
    file.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_file(str(file), schema) as sink:
        if keys:
            values = np.broadcast_to(numbers.reshape(-1, *[1] * len(shape)), (len(keys), *shape))
            columns = [pa.array(keys), fixed_size_list(values), pa.array(numbers, pa.int32())]
            sink.write_batch(pa.record_batch(columns[: len(schema)], schema=schema))
