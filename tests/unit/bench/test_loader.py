"""The loader's benchmark runs, and what it prints is what it measured."""

import json

import numpy as np
import psutil
import pytest

from pipeline.bench import loader
from pipeline.bench.synthetic import DataSet
from pipeline.dataset import Manifest
from pipeline.errors import UserError

SMALL = ["--rows", "512", "--shards", "2", "--latent", "2", "2", "2", "--text", "3", "4", "--batch", "64", "--samples", "128"]


@pytest.mark.parametrize("more", [[], ["--reading", "read", "--padding", "drop"], ["--files", "1"]])
def test_it_prints_one_json_object_and_leaves_nothing_behind(tmp_path, capsys, more):
    assert loader.main([*SMALL, "--rounds", "1", "--folder", str(tmp_path), *more]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bytes_of_a_sample"] == 2 * (8 + 12) and result["samples"] == 512 and result["samples_a_round"] == 128
    for kind in ("samples_per_second", "memcpy_samples_per_second", "bare_read_samples_per_second", "start_up_seconds"):
        assert result[kind] > 0
    shares = result["samples_per_second"] / result["bare_read_samples_per_second"]
    assert result["share_of_bare_read"] == pytest.approx(shares, rel=0.02, abs=1e-3)
    assert list(tmp_path.iterdir()) == []


def test_a_cold_run_is_measured_beside_a_plain_read_of_the_files(tmp_path, capsys, monkeypatch):
    evicted = []
    monkeypatch.setattr(loader.os, "posix_fadvise", lambda file, start, size, advice: evicted.append((start, size, advice)))
    assert loader.main([*SMALL, "--rounds", "1", "--folder", str(tmp_path), "--reading", "read", "--cold"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["samples_per_second"] > 0 and result["plain_read_gigabytes_per_second"] > 0
    assert "share_of_plain_read" in result and "memcpy_samples_per_second" not in result
    # Two rounds, the loader's and the plain one, each of two shards' latents and text, whole.
    assert evicted == [(0, 0, loader.os.POSIX_FADV_DONTNEED)] * (2 * 2 * 4)


def test_a_plain_read_is_as_long_as_it_should_be(tmp_path):
    manifest = Manifest.read(DataSet(rows=300, shards=1, latent=(1, 2, 2), text=(2, 2)).write(tmp_path))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.arrow"))
    before = psutil.Process().io_counters().read_chars
    loader._ColdFiles(manifest, 3 * size).read(0)
    assert psutil.Process().io_counters().read_chars - before >= 3 * size


def test_what_is_mapped_cannot_be_cold():
    with pytest.raises(UserError, match="--cold: needs --reading read"):
        loader.main(["--cold"])


def test_it_reads_a_manifest_that_is_there(tmp_path, capsys):
    path = DataSet(rows=300, shards=1, latent=(1, 2, 2), text=(2, 2)).write(tmp_path)
    assert loader.main(["--manifest", str(path), "--batch", "32", "--samples", "64", "--rounds", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 300 and path.exists()


def test_rows_that_do_not_fit_the_shards_are_refused():
    with pytest.raises(UserError, match="--rows: 100 is no multiple of 7 shards"):
        loader.main(["--rows", "100", "--shards", "7"])


def test_the_best_round_counts_and_the_first_does_not():
    turns = []
    seconds = loader._best({"work": turns.append}, rounds=3)
    assert turns == [0, 1, 2, 3] and seconds["work"] >= 0


def test_a_made_data_set_is_what_was_asked_for(tmp_path):
    made = DataSet(
        rows=1200, shards=6, files=2, latent=(1, 2, 2), text=(2, 2), captions=2, kept=0.5, held_out=20, sources=("a", "b", "c")
    )
    manifest = Manifest.read(made.write(tmp_path))
    assert len(manifest.shards) == 6 and manifest.shards[0]["latents"] == manifest.shards[2]["latents"]
    assert 500 < manifest.samples < 700 and len(manifest.validation.row) == 20
    assert set(np.unique(manifest.index.texts)) == {1, 2}
    for name, (first, end) in manifest.sources.items():
        assert {manifest.shards[shard]["source"] for shard in manifest.index.shard[first:end]} == {name}
    assert [end for _, end in manifest.sources.values()][-1] == manifest.samples
