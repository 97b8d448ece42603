"""What a rule declares as inputs of a shard is what the step reads for it."""

import pytest

from pipeline.config.sources import KINDS
from pipeline.sources.inputs import files_of_shards, files_of_table


def source(kind, **keys):
    return KINDS[kind](kind=kind, **keys)


@pytest.fixture
def tars(make, tmp_path):
    """Five tars of two samples each; the pattern that names them."""
    for number in range(5):
        samples = {f"s{number}_{row}.jpg": make.jpeg(10 * number + row) for row in range(2)}
        (tmp_path / f"t-{number}.tar").write_bytes(make.tar(samples.items()))
    return str(tmp_path / "t-*.tar")


@pytest.mark.parametrize("fraction", [1.0, 0.6])
@pytest.mark.parametrize(("kind", "key"), [("webdataset", "path"), ("archives", "files")])
def test_the_files_of_a_shard_are_those_that_collect_reads(collect, tars, kind, key, fraction):
    keys = {key: tars, "shards": 2, "fraction": fraction}
    for shard, declared in enumerate(files_of_shards(source(kind, **keys))):
        read = {row["origin"].split(".tar")[0].rpartition("/")[2] for row in collect(kind, shard=shard, **keys).rows}
        assert read and read == {file.rpartition("/")[2].removesuffix(".tar") for file in declared}


def test_where_there_are_fewer_files_than_shards_they_share_them(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.parquet").touch()
    found = files_of_shards(source("hf_parquet", files=f"{tmp_path}/*.parquet", shards=3))
    assert found == [[f"{tmp_path}/a.parquet"], [f"{tmp_path}/b.parquet"], [f"{tmp_path}/a.parquet"]]
    tars = source("webdataset", path=f"{tmp_path}/{{a,b}}.parquet", shards=3)
    assert files_of_shards(tars) == [[f"{tmp_path}/a.parquet"], [f"{tmp_path}/b.parquet"], []]


def test_what_the_table_is_made_of_is_no_input_of_a_shard_twice_over():
    archives = source("archives", files="a-{0..3}.zip", table="captions.csv", shards=2)
    assert files_of_table(archives) == ["captions.csv"]
    assert files_of_shards(archives) == [["a-0.zip", "a-2.zip", "captions.csv"], ["a-1.zip", "a-3.zip", "captions.csv"]]


def test_files_that_are_elsewhere_are_none_and_those_for_all_shards_are_in_each(tmp_path):
    there = source("archives", links=str(tmp_path / "links.txt"), table="hf://datasets/o/n@main/t.csv", shards=2)
    assert files_of_shards(there) == [[str(tmp_path / "links.txt")]] * 2
    assert files_of_table(there) == []
    assert files_of_shards(source("webdataset", path="hf://datasets/o/n@main/{0..9}.tar", shards=2)) == [[], []]
    assert files_of_shards(source("webdataset", path=f"{tmp_path}/none-*.tar", shards=2)) == [[], []]
    assert files_of_shards(source("synthetic", count=3, shards=2)) == [[], []]
