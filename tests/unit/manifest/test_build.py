"""What trainers find in a manifest, and what it refuses to be made of."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.steps import ManifestSlice
from pipeline.errors import UserError
from pipeline.manifest.build import run
from pipeline.manifest.captions import longest_runs
from pipeline.manifest.judge import words
from pipeline.verify.command import faults
from tests.unit.manifest.results import LATENT, TEXT, VAE, Results, index_of, sample


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


def test_both_indexes_are_hashed(results: Results) -> None:
    results.add("a", [sample(n) for n in range(40)])
    manifest = results.build(held_out=0.4)
    assert faults(results.root) == []
    file = manifest.path.with_name("low.validation.arrow")
    assert len(index_of(manifest, "validation")) > 0
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert [str(file) in str(fault) for fault in faults(results.root)] == [True]


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


def test_the_manifest_needs_no_torch() -> None:
    code = "import sys, pipeline.manifest.build; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
