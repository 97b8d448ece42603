"""The loader's benchmark runs, and what it prints is what it measured."""

import json

import numpy as np
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
