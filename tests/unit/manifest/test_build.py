import hashlib
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifacts import (
    CAPTIONS,
    INDEX,
    LEDGER,
    fixed_size_list,
    latents_schema,
    read_json,
    text_schema,
    verify,
    write_sidecar,
)
from pipeline.config.steps import ManifestSlice
from pipeline.dataset import Manifest
from pipeline.errors import UserError
from pipeline.manifest.account import MOST_LICENCES
from pipeline.manifest.build import run
from pipeline.manifest.captions import longest_runs
from pipeline.manifest.judge import words

LATENT, TEXT = (2, 1, 1), (2, 3)
VAE, ENCODER = {"ref": "embedded:vae", "sha256": "1" * 64}, {"ref": "embedded:clip", "sha256": "2" * 64}


def sample(
    content: int, *captions: str | None, side: int = 64, bad: str | None = None, latent: str | None = None, **facts: object
) -> dict:
    """One image: equal `content` means equal bytes; `bad`: it ended in the ledger; `latent`: its latent is unusable;
    `facts`: more columns of the ledger. The embedding of the caption "inf" is unusable, one that begins with "model:" was
    written by one; without `captions` it has a usable one."""
    return {"content": content, "captions": captions or ("c",), "side": side, "bad": bad, "latent": latent, "facts": facts}


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


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path)


def test_every_sample_is_trained_on_or_left_out_with_its_reason(results: Results) -> None:
    results.evaluate([sample(7, "of the evaluation")])
    results.add("photos", [
        sample(1), sample(2, bad="truncated"), sample(3, None), sample(4, latent="not_finite"),
        sample(5, side=31), sample(7), sample(1), sample(8),
    ])  # fmt: skip
    manifest = results.build()
    assert manifest.samples == 2 and index_of(manifest) == [(0, 0, 0, 1, 1), (0, 6, 6, 1, 1)]
    assert index_of(manifest, "validation") == []
    assert manifest.counts["photos"] == {
        "seen": 8,
        "bad": {"truncated": 1},
        "collected": 7,
        "left_out": {"below_px": 1, "duplicate": 1, "in_evaluation_set": 1, "latent_not_finite": 1, "no_caption": 1},
        "trained": 2,
        "captions": {"collected": 6, "left_out": {"image_left_out": 4}, "trained": 2},
        "licences": {"unknown": 2},
    }
    reasons = ["no_caption", "latent_not_finite", "below_px", "in_evaluation_set", "duplicate"]
    assert results.left_out() == [(f"photos00000-{n}", reason) for n, reason in zip((2, 3, 4, 5, 6), reasons, strict=True)]
    assert list(verify(results.root)) == []


def test_the_manifest_gives_trainers_aligned_rows(results: Results) -> None:
    results.add("b", [sample(1), sample(2)])
    results.add("a", [sample(3), sample(4)], shard="00001")
    results.add("a", [sample(5, None), sample(6, "one", "two")])
    manifest = results.build()
    assert [(s["source"], s["shard"], s["rows"], s["kept"]) for s in manifest.shards] == [
        ("a", "00000", 2, 1), ("a", "00001", 2, 2), ("b", "00000", 2, 2)
    ]  # fmt: skip
    assert index_of(manifest) == [(0, 1, 1, 2, 2), (1, 0, 0, 1, 1), (1, 1, 1, 1, 1), (2, 0, 0, 1, 1), (2, 1, 1, 1, 1)]
    assert manifest.value["sources"] == {"a": [0, 3], "b": [3, 5]}
    assert (manifest.latent_shape, manifest.text_shape, manifest.vae, manifest.px) == (LATENT, TEXT, VAE, 32)
    for shard, row, text, texts, _ in index_of(manifest):
        latents, embeddings = manifest.latents(shard), manifest.text(shard)
        assert (latents.row(row) == row).all() and all((embeddings.row(text + n) == row).all() for n in range(texts))
        assert set(embeddings.keys[text : text + texts]) == {latents.keys[row]}


def test_of_several_captions_only_usable_ones_are_chosen_among(results: Results) -> None:
    results.add("photos", [
        sample(1, "a", "b", "c"), sample(2, "a", None), sample(3, "inf", "b", "c"), sample(4, "a", "inf", "b", "c", "inf"),
        sample(5, "inf", None), sample(6, None, "inf"), sample(7, "a", "inf", "b"),
    ])  # fmt: skip
    manifest = results.build()
    assert [line[:4] for line in index_of(manifest)] == [(0, 0, 0, 3), (0, 1, 3, 1), (0, 2, 6, 2), (0, 3, 10, 2), (0, 6, 17, 1)]
    assert results.left_out() == [("photos00000-4", "text_not_finite"), ("photos00000-5", "no_caption")]
    assert manifest.counts["photos"]["collected"] == 7 and manifest.counts["photos"]["trained"] == 5
    left_out = {"apart": 2, "text_not_finite": 6}  # "a" before "inf" twice
    assert manifest.counts["photos"]["captions"] == {"collected": 17, "left_out": left_out, "trained": 9}


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), max_size=6))
def test_longest_runs_are_those_found_by_search(images: list[list[bool]]) -> None:
    starts = np.cumsum([0] + [len(rows) for rows in images])
    number, flat = (
        np.repeat(np.arange(len(images)), np.diff(starts)),
        np.array([row for rows in images for row in rows], dtype=bool),
    )
    first, count = longest_runs(number, flat, len(images))
    for image, rows in enumerate(images):
        runs = [(b - a, -a) for a in range(len(rows)) for b in range(a + 1, len(rows) + 1) if all(rows[a:b])]
        length, place = max(runs, default=(0, None))
        assert count[image] == length and (place is None or first[image] == starts[image] - place)


def test_the_manifest_says_whether_the_padding_of_captions_is_dropped(results: Results) -> None:
    results.add("a", [sample(1)], padding="drop")
    assert results.build().value["text_padding"] == "drop"
    results.add("b", [sample(2)])
    with pytest.raises(UserError, match=r"b/00000\.json: text_padding attend differs from drop of .*; run encode again"):
        results.build()


def test_held_out_samples_are_the_same_in_every_stage(results: Results) -> None:
    """Whatever the stage's resolution and sources are, and wherever the same bytes turn up."""
    images = [sample(n, side=40 + 40 * (n % 2)) for n in range(300)]
    results.add("a", images)
    results.add("b", [sample(300, None), *images[:50], *(sample(n) for n in range(301, 401))])
    both = results.build(held_out=0.2, seed=1)
    held, kept = keys_of(both, "validation"), keys_of(both)
    assert held.isdisjoint(kept) and len(held) + len(kept) == 400 and 50 < len(held) < 110
    assert both.samples == len(kept) and both.counts["a"]["left_out"] == {"held_out": sum(k.startswith("a") for k in held)}
    assert {key for key, reason in results.left_out() if reason == "held_out"} == held

    results.encoded.pop()
    alone = results.build(held_out=0.2, seed=1, stage="other")
    assert keys_of(alone, "validation") == {key for key in held if key.startswith("a")}
    results.encoded.clear()
    results.add("a", images, px=64)
    high = results.build(px=64, held_out=0.2, seed=1, stage="high")
    large = {f"a00000-{n}" for n in range(1, 300, 2)}
    assert keys_of(high, "validation") == held & large and keys_of(high) == large - held
    assert sum(high.counts["a"]["left_out"].values()) == 150 + len(held & large)


def test_more_held_out_adds_to_those_before_and_a_seed_changes_them(results: Results) -> None:
    results.add("a", [sample(n) for n in range(1000)])
    few, many, others = (keys_of(results.build(held_out=s, seed=n), "validation") for s, n in ((0.1, 0), (0.3, 0), (0.3, 1)))
    assert few < many and len(many & others) < 0.5 * len(many)
    assert 70 < len(few) < 130 and 250 < len(many) < 350 and 250 < len(others) < 350
    none = results.build(held_out=1e-9)
    assert none.samples == 1000 and index_of(none, "validation") == []


def test_both_indexes_are_hashed(results: Results) -> None:
    results.add("a", [sample(n) for n in range(40)])
    manifest = results.build(held_out=0.4)
    assert list(verify(results.root)) == []
    file = manifest.path.with_name("low.validation.arrow")
    assert len(index_of(manifest, "validation")) > 0
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert [str(file) in fault for fault in verify(results.root)] == [True]


def test_of_duplicates_the_first_usable_one_stays(results: Results) -> None:
    results.add("b", [sample(1), sample(2)])
    results.add("a", [sample(1, None), sample(2), sample(2)])
    assert [line[:2] for line in index_of(results.build())] == [(0, 1), (1, 0)]
    assert results.left_out() == [("a00000-0", "no_caption"), ("a00000-2", "duplicate"), ("b00000-1", "duplicate")]


def test_small_images_are_used_when_the_source_is_enlarged(results: Results) -> None:
    results.add("photos", [sample(1, side=31), sample(2, side=32)])
    assert results.build().samples == 1 and results.build(upscale=True).samples == 2


SAMPLES = st.lists(
    st.builds(
        lambda captions, **facts: sample(facts.pop("content"), *captions, **facts),
        content=st.integers(0, 6),
        captions=st.builds(
            lambda given, wrote: given + wrote or [None],
            st.lists(st.sampled_from(["c", None, "inf"]), max_size=3),
            st.lists(st.sampled_from(["model:a", "model:b"]), max_size=2),
        ),
        side=st.sampled_from([16, 64]),
        bad=st.sampled_from([None, None, "truncated", "too_large"]),
        latent=st.sampled_from([None, None, "fp16_overflow"]),
    ),
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.tuples(SAMPLES, SAMPLES), min_size=1), SAMPLES, st.sampled_from([0, 0.4])
)
def test_the_account_adds_up_from_ledger_to_training(
    tmp_path_factory: pytest.TempPathFactory,
    sources: dict[str, tuple[list[dict], list[dict]]],
    evaluated: list[dict],
    held_out: float,
) -> None:
    results = Results(tmp_path_factory.mktemp("results"))
    results.evaluate(evaluated)
    anchor = sample(100, "anchor")  # is not held out
    for name, (first, second) in sources.items():
        results.add(name, [*first, anchor], shard="00000")
        results.add(name, second, shard="00001")
    manifest = results.build(held_out=held_out)
    everything = {name: [*first, anchor, *second] for name, (first, second) in sources.items()}
    index, held = index_of(manifest), index_of(manifest, "validation")
    trained, validated = (Counter(manifest.shards[shard]["source"] for shard, *_ in lines) for lines in (index, held))
    for name, counts in manifest.counts.items():
        assert counts["seen"] == len(everything[name])
        assert counts["bad"] == Counter(s["bad"] for s in everything[name] if s["bad"])
        assert counts["seen"] == sum(counts["bad"].values()) + counts["collected"]
        assert counts["collected"] == sum(counts["left_out"].values()) + counts["trained"]
        captions = counts["captions"]
        assert captions["collected"] == sum(c is not None for s in everything[name] if not s["bad"] for c in s["captions"])
        assert captions["collected"] == sum(captions["left_out"].values()) + captions["trained"]
        assert sum(counts["licences"].values()) == counts["trained"]
        assert counts["trained"] == trained[name] and counts["left_out"].get("held_out", 0) == validated[name]
        start, end = manifest.value["sources"][name]
        assert {manifest.shards[shard]["source"] for shard, *_ in index[start:end]} <= {name} and end - start == trained[name]
    assert manifest.samples == trained.total() == sum(s["kept"] for s in manifest.shards)
    leaked_captions = {caption for s in evaluated if not s["bad"] for caption in s["captions"]}
    _check_samples(manifest, everything, {s["content"] for s in evaluated}, leaked_captions)


def _check_samples(manifest: Manifest, everything: dict[str, list[dict]], leaks: set[int], leaked: set[str | None]) -> None:
    """What is trained on or held out is every content once whose first usable copy fits, with a run of its usable captions."""

    def may_use(caption: str | None) -> bool:
        return usable(caption) and caption not in leaked

    def good(s: dict) -> bool:
        captioned = any(map(may_use, s["captions"]))
        return not s["bad"] and captioned and s["content"] not in leaks

    def fits(s: dict) -> bool:
        return not s["latent"] and s["side"] >= 32

    firsts: dict[int, dict] = {}
    for s in (s for name in sorted(everything) for s in everything[name] if good(s)):
        firsts.setdefault(s["content"], s)
    expected = [content for content, s in firsts.items() if fits(s)]
    contents = []
    for shard, row, text, texts, came in index_of(manifest) + index_of(manifest, "validation"):
        source, name = manifest.shards[shard]["source"], manifest.shards[shard]["shard"]
        tar = manifest.path.parent.parent / "data" / source / f"{name}.tar"
        kept = [s for s in json.loads(tar.read_text()) if not s["bad"]]
        contents.append(kept[row]["content"])
        captions = [(n, caption) for n, s in enumerate(kept) for caption in s["captions"]][text : text + texts]
        assert good(kept[row]) and fits(kept[row]) and captions and all(n == row and may_use(caption) for n, caption in captions)
        assert [written(caption) for _, caption in captions] == [False] * came + [True] * (texts - came)
    assert sorted(contents) == sorted(expected)


def test_the_manifest_is_the_same_for_any_order_and_its_digest_ignores_paths(results: Results, tmp_path: Path) -> None:
    for name in ("a", "b"):
        results.add(name, [sample(ord(name)), sample(5)])
    first = results.build()
    content = first.path.read_bytes()
    results.encoded.reverse()
    assert results.build().path.read_bytes() == content
    other = Results(tmp_path / "elsewhere")
    for name in ("a", "b"):
        other.add(name, [sample(ord(name)), sample(5)])
    assert other.build().samples_digest == first.samples_digest
    other.add("c", [sample(9)])
    assert other.build().samples_digest != first.samples_digest


def test_shards_of_different_models_or_shapes_are_refused(results: Results) -> None:
    results.add("a", [sample(1)])
    results.add("b", [sample(2)], vae=VAE | {"sha256": "3" * 64})
    with pytest.raises(UserError, match=r"b/00000\.json: vae .* differs from .*a/00000\.json; run encode again"):
        results.build()
    results.encoded.pop()
    results.add("b", [sample(2)], latent=(4, 1, 1))
    with pytest.raises(UserError, match="latent_shape"):
        results.build()


def test_no_sample_left_tells_the_counts(results: Results) -> None:
    results.add("photos", [sample(1, None), sample(2, bad="truncated")])
    with pytest.raises(UserError, match=r"no sample is left .* photos: 2 seen, bad: 1 truncated, left out: 1 no_caption"):
        results.build()
    assert not (results.root / "manifests").exists()


def test_stale_or_missing_inputs_are_named(results: Results) -> None:
    results.add("photos", [sample(1), sample(2)])
    with pytest.raises(UserError, match=r"photos/00000\.json: no latents at 64 px"):
        results.build(px=64)
    results.captions("photos", "00000", [{"key": f"photos00000-{n}", "captions": ["new"]} for n in range(2)])
    with pytest.raises(UserError, match=r"made from other captions than .*; run encode again"):
        results.build()


def test_a_source_of_another_stage_is_refused(results: Results) -> None:
    encoded = results.add("photos", [sample(1)])
    slice_ = ManifestSlice(stage="low", px=32, sources={"others": {"role": "real", "upscale": False}})
    with pytest.raises(UserError, match="source 'photos' is none of stage 'low'"):
        run(slice_, [encoded], [], [], results.root / "low.json")


def test_hashes_are_read_as_numbers() -> None:
    digests = [hashlib.sha256(bytes([n])) for n in range(3)]
    found = words(pa.chunked_array([[d.hexdigest() for d in digests[:2]], [digests[2].hexdigest()]]), 4)
    assert [b"".join(int(word).to_bytes(8, "big") for word in row) for row in found] == [d.digest() for d in digests]
    assert words(pa.chunked_array([[]], pa.string()), 1).shape == (0, 1)


def near(content: int, *bits: int, **facts: object) -> dict:
    """An image whose perceptual hash differs from 0f0f… in these bits."""
    return sample(content, phash=f"{0x0F0F_0F0F_0F0F_0F0F ^ sum(1 << bit for bit in bits):016x}", **facts)


def test_of_near_duplicates_the_first_stays_in_all_sources_and_no_chains_form(results: Results) -> None:
    results.add("b", [near(1, 0), near(2, 20, 21, 22, 23, 24), near(3)])
    results.add("a", [near(4, 0, 1, 2), near(5, 0, 1, 2, 3), near(6, 0, 1, 2, 3, 4, 5)])
    # a-1 is near to a-0. a-2 is 2 bits from a-1 alone. b-0 is 2 bits from a-0, and b-2 one bit from b-0 alone.
    assert keys_of(results.build(filters={"near_duplicates": 2})) == {"a00000-0", "a00000-2", "b00000-1", "b00000-2"}
    assert results.left_out() == [("a00000-1", "near_duplicate"), ("b00000-0", "near_duplicate")]
    assert keys_of(results.build(filters={"near_duplicates": 3})) == {"a00000-0", "b00000-1"}
    assert results.build(filters={"near_duplicates": 0}).samples == 6
    assert results.build(filters={"near_duplicates": None}).samples == 6


@pytest.mark.parametrize("upscale", [False, True])
def test_the_same_copy_stays_at_every_resolution(results: Results, upscale: bool) -> None:
    """The largest, which is there at the most resolutions; also where the latents of one resolution are unusable."""
    sides = {"small": 40, "middle": 80, "large": 160}
    groups = [["small", "large", "middle"], ["middle", "small"], ["small", "small"], ["large", "large", "small"]]
    place = [(group, side) for group, sides_ in enumerate(groups) for side in sides_]
    samples = [near(n, *range(8 * group, 8 * group + 8), n % 8 + 40, side=sides[side]) for n, (group, side) in enumerate(place)]
    survivors, trained = [1, 3, 5, 7], {}
    for px, bad in ((32, {}), (64, {7: "not_finite"}), (128, {})):
        results.encoded = []
        results.add("a", [one | {"latent": bad.get(n)} for n, one in enumerate(samples)], px=px)
        trained[px] = keys_of(results.build(px=px, upscale=upscale, stage=f"at_{px}"))
        gone = {key for key, reason in results.left_out(f"at_{px}") if reason == "near_duplicate"}
        assert gone == {f"a00000-{n}" for n in range(10) if n not in survivors}
    fits = {32: survivors, 64: [1, 3, 5] if upscale else [1, 3], 128: survivors if upscale else [1, 7]}
    assert trained == {px: {f"a00000-{n}" for n in numbers} for px, numbers in fits.items()}


def test_images_that_go_for_other_reasons_take_no_near_duplicates_with_them(results: Results) -> None:
    results.add("a", [near(1, side=16), near(2, bad="truncated"), near(3, license="no"), near(4, license="yes"), near(5, 1)])
    manifest = results.build(filters={"licences": ["yes"]})
    assert keys_of(manifest) == {"a00000-3"} and manifest.counts["a"]["licences"] == {"yes": 1}
    assert results.left_out() == [("a00000-0", "licence"), ("a00000-2", "licence"), ("a00000-4", "licence")]
    assert keys_of(results.build()) == {"a00000-2"}


def test_plain_images_are_no_near_duplicates_of_each_other(results: Results) -> None:
    plain = "8000000000000000"  # of any plain colour
    results.evaluate([sample(9, phash=plain)], "another")
    results.add("a", [sample(1, phash=plain), sample(2, phash=plain), sample(2, phash=plain), sample(3, phash=None)])
    manifest = results.build()
    assert manifest.samples == 3 and manifest.counts["a"]["left_out"] == {"duplicate": 1}


def test_images_near_to_the_evaluation_set_are_left_out(results: Results) -> None:
    """Also those that the evaluation saw and could not use."""
    results.evaluate([near(1), near(2, *range(30, 40)), sample(3, bad="too_small")], "another")
    results.add("a", [near(4, 5, 6), near(5, 5, 6, 7), near(4, 5, 6), near(6, *range(30, 39)), sample(3), near(2)])
    assert keys_of(results.build()) == {"a00000-1"}
    reasons = ["near_evaluation_set"] * 3 + ["in_evaluation_set"] * 2
    assert results.left_out() == [(f"a00000-{n}", reason) for n, reason in zip((0, 2, 3, 4, 5), reasons, strict=True)]
    exact = results.build(filters={"near_duplicates": None})
    assert exact.counts["a"]["left_out"] == {"duplicate": 1, "in_evaluation_set": 2}


def test_captions_of_the_evaluation_set_are_not_used(results: Results) -> None:
    results.evaluate([sample(1, "A dog, on a sofa."), sample(2, "Ein Café"), sample(3, "!?"), sample(4, None)])
    results.add("a", [
        sample(11, "a DOG on a sofa"), sample(12, "a dog on a sofa", "a dog"), sample(13, "EIN CAFE\u0301!", "model:x"),
        sample(14, "a dog on the sofa"), sample(15, "..."), sample(16, "one", "a dog on a sofa", "two", "three"),
    ])  # fmt: skip
    manifest = results.build()
    assert index_of(manifest) == [(0, 1, 2, 1, 1), (0, 2, 4, 1, 0), (0, 3, 5, 1, 1), (0, 4, 6, 1, 1), (0, 5, 9, 2, 2)]
    assert results.left_out() == [("a00000-0", "caption_in_evaluation_set")]
    left_out = {"apart": 1, "caption_in_evaluation_set": 4}
    assert manifest.counts["a"]["captions"] == {"collected": 11, "left_out": left_out, "trained": 6}
    assert results.build(filters={"leaked_captions": False}).counts["a"]["captions"]["trained"] == 11


def test_filters_by_scores(results: Results) -> None:
    scores = [None, [], [("aesthetic", 4.9)], [("nsfw", 0.2), ("aesthetic", 5.0)], [("nsfw", 0.3)], [("aesthetic", math.nan)]]
    results.add("a", [sample(n, scores=score) for n, score in enumerate(scores)])
    results.build(filters={"scores": {"aesthetic": {"min": 5.0}, "nsfw": {"max": 0.2}, "watermark": {"max": 0.1}}})
    assert results.left_out() == [("a00000-2", "score"), ("a00000-4", "score")]


def test_filters_by_shape(results: Results) -> None:
    results.add("a", [sample(n, width=w, height=h) for n, (w, h) in enumerate([(60, 120), (120, 60), (60, 121), (900, 32)])])
    assert results.build().samples == 4 and results.build(filters={"max_aspect": 2}).samples == 2
    assert results.left_out() == [("a00000-2", "aspect_ratio"), ("a00000-3", "aspect_ratio")]


def test_captions_of_another_length_are_not_used(results: Results) -> None:
    captions = [("ab 12!",), ("abc",), ("abcdefg",), ("ab", "日本語"), ("abcdefg", "ab", "abc"), (None,), ("a1", "model:abc")]
    results.add("a", [sample(n, *texts) for n, texts in enumerate(captions)])
    manifest = results.build(filters={"min_caption": 3, "max_caption": 6})
    assert index_of(manifest) == [(0, 1, 1, 1, 1), (0, 3, 4, 1, 1), (0, 4, 7, 1, 1)]
    reasons = ["caption_too_short", "caption_too_long", "no_caption", "caption_too_short"]
    assert results.left_out() == [(f"a00000-{n}", reason) for n, reason in zip((0, 2, 5, 6), reasons, strict=True)]


def test_samples_that_were_taken_down_go_and_copies_of_them_too(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    results.add("b", [sample(2), near(3, 7), sample(4)])
    results.add("a", [near(1), sample(2), sample(2), sample(5), sample(6, bad="truncated")])
    names = results.root / "take_down.txt"
    names.write_text("a/a00000-0 # asked for\n\n# more\na/a00000-1\na/a00000-4\na/absent\nelsewhere/x\n")
    assert keys_of(results.build()) == {"a00000-3", "b00000-2"}
    assert {reason for _, reason in results.left_out()} == {"taken_down"} and len(results.left_out()) == 5
    told = f"{names}: 1 of 4 lines for this stage's sources name no sample that was seen\n"
    assert capsys.readouterr().err == told
    names.write_text("a/a00000-0\nno key\n")
    with pytest.raises(UserError, match=r"take_down\.txt:2: 'no key': not SOURCE/KEY"):
        results.build()


def test_what_is_taken_down_is_given_before_other_reasons(results: Results) -> None:
    (results.root / "take_down.txt").write_text("a/a00000-0\n")
    results.add("a", [sample(1, None, side=16, license="no"), sample(2, None, license="no"), sample(3, license="yes")])
    results.build(filters={"licences": ["yes"]})
    assert results.left_out() == [("a00000-0", "taken_down"), ("a00000-1", "licence")]


def test_licences_are_counted_by_what_is_trained_on(results: Results) -> None:
    many = [sample(100 + n, license=f"L{n:03}") for n in range(MOST_LICENCES + 5)]
    results.add("b", many)
    results.add("a", [sample(1, license="CC0"), sample(2), sample(3, license="CC BY 4.0"), sample(4, license="CC BY 4.0"),
                      sample(5, None, license="CC0"), sample(6, license="CC BY 4.0", bad="truncated")])  # fmt: skip
    counts = results.build().counts
    assert list(counts["a"]["licences"].items()) == [("CC BY 4.0", 2), ("CC0", 1), ("unknown", 1)]
    of_b = counts["b"]["licences"]
    assert len(of_b) == MOST_LICENCES + 1 and next(iter(of_b.items())) == ("other", 5) and sum(of_b.values()) == len(many)


def test_the_manifest_needs_no_torch() -> None:
    code = "import sys, pipeline.manifest.build; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
