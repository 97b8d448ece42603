"""Arrow shards and manifests as training reads them."""

import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import dataset
from pipeline.artifacts import (
    BLOCK_ROWS,
    INDEX,
    fixed_size_list,
    latents_schema,
    read_json,
    text_schema,
    variable_list,
    write_json,
)
from pipeline.bench.synthetic import DataSet
from pipeline.dataset import ArrowShard, Index, Manifest
from pipeline.errors import UserError


def write_shard(path, schema, rows, block=BLOCK_ROWS, options=None):
    """Of [n, ...] arrays, one a row."""
    variable = pa.types.is_list(schema.types[1])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as writer:
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            columns = [pa.array([f"k{start + n}" for n in range(len(part))])]
            columns += [variable_list(part) if variable else fixed_size_list(np.stack(part))]
            columns += [pa.array([len(row) for row in part], pa.int32())]
            writer.write_batch(pa.record_batch(columns[: len(schema)], schema=schema))
    return path


def random_rows(count, shape, variable=False):
    random = np.random.default_rng(count)
    rows = random.normal(size=(count, *shape)).astype(np.float16)
    return [row[: random.integers(1, shape[0] + 1)] for row in rows] if variable else list(rows)


def filled(row, shape):
    out = np.zeros(shape, np.float16)
    out[: len(row)] = row
    return out


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 900), variable=st.booleans(), reading=st.sampled_from(["mapped", "read"]))
def test_rows_come_back_bit_for_bit(tmp_path_factory, rows, variable, reading):
    shape = (5, 3)
    values = random_rows(rows, shape, variable)
    schema = text_schema(shape, {"model": "m"} | ({"padding": "drop"} if variable else {}))
    path = write_shard(tmp_path_factory.mktemp("arrow") / "x.arrow", schema, values)
    shard = ArrowShard(path, "tokens", reading)
    assert len(shard) == rows and shard.shape == shape and shard.info["model"] == "m"
    assert shard.keys == [f"k{n}" for n in range(rows)]
    assert all(np.array_equal(shard.row(n), filled(values[n], shape)) for n in range(rows))
    blocks = [shard.block(n) for n in range(shard.blocks)]
    assert sum(len(block.starts) - 1 for block in blocks) == rows
    for n in range(0, rows, 7):
        block = blocks[n // BLOCK_ROWS]
        start, end = block.starts[n % BLOCK_ROWS : n % BLOCK_ROWS + 2]
        assert np.array_equal(block.values[start:end], values[n].ravel())


class Recorder:
    """Notes the reads of the operating system and passes them on."""

    def __init__(self, monkeypatch):
        self.reads = []
        self._preadv = os.preadv
        monkeypatch.setattr(dataset.os, "preadv", self)

    def __call__(self, descriptor, buffers, offset):
        self.reads.append((offset, sum(len(buffer) for buffer in buffers)))
        return self._preadv(descriptor, buffers, offset)


def test_a_block_is_one_sequential_read_of_a_megabyte_or_more(tmp_path, monkeypatch):
    values = random_rows(3 * BLOCK_ROWS, (4, 16, 32))
    shard = ArrowShard(write_shard(tmp_path / "x.arrow", latents_schema((4, 16, 32), {}), values), "latent", "read")
    recorder = Recorder(monkeypatch)
    for number in range(3):
        shard.block(number)
    assert len(recorder.reads) == 3 and all(length >= 1 << 20 for _, length in recorder.reads)
    ends = [offset + length for offset, length in recorder.reads]
    assert [offset for offset, _ in recorder.reads[1:]] == ends[:-1]  # one after another, nothing twice


def test_one_row_reads_nothing_of_the_others(tmp_path, monkeypatch):
    values = random_rows(600, (4, 16, 32))
    shard = ArrowShard(write_shard(tmp_path / "x.arrow", latents_schema((4, 16, 32), {}), values), "latent", "read")
    recorder = Recorder(monkeypatch)
    assert np.array_equal(shard.row(599), values[599])
    assert sum(length for _, length in recorder.reads) < values[599].nbytes + 2048


def test_a_mapped_shard_is_not_copied(tmp_path):
    shard = ArrowShard(write_shard(tmp_path / "x.arrow", latents_schema((2, 2, 2), {}), random_rows(9, (2, 2, 2))), "latent")
    values = shard.block(0).values
    assert not values.flags.owndata and not values.flags.writeable


@pytest.mark.parametrize("reading", ["mapped", "read"])
def test_a_damaged_file_is_named(tmp_path, reading):
    path = write_shard(tmp_path / "x.arrow", latents_schema((2, 2, 2), {}), random_rows(300, (2, 2, 2)))
    whole = path.read_bytes()
    for content in (b"", b"ARROW1", whole[:-1], whole[: len(whole) // 2], whole[:1000] + whole[3000:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.arrow: not a readable Arrow file \(.+\); delete it and run again"):
            ArrowShard(path, "latent", reading)
    with pytest.raises(UserError, match=r"y\.arrow"):
        ArrowShard(tmp_path / "y.arrow", "latent", reading)


def test_a_file_cut_while_it_is_read_is_named(tmp_path):
    path = write_shard(tmp_path / "x.arrow", latents_schema((2, 2, 2), {}), random_rows(300, (2, 2, 2)))
    shard = ArrowShard(path, "latent", "read")
    os.truncate(path, 3000)
    with pytest.raises(UserError, match=r"x\.arrow: .*ends before byte"):
        shard.block(1)


def test_a_file_of_another_layout_is_refused(tmp_path):
    rows, schema = random_rows(300, (2, 2, 2)), latents_schema((2, 2, 2), {})
    uneven = ArrowShard(write_shard(tmp_path / "uneven.arrow", schema, rows, block=100), "latent")
    with pytest.raises(UserError, match="record batch 0 has 100 rows, not 256"):
        uneven.block(0)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    packed = ArrowShard(write_shard(tmp_path / "packed.arrow", schema, rows, options=options), "latent")
    with pytest.raises(UserError, match="compressed"):
        packed.row(0)
    with pytest.raises(UserError, match="not key and tokens"):
        ArrowShard(tmp_path / "uneven.arrow", "tokens")
    whole = ArrowShard(write_shard(tmp_path / "whole.arrow", schema, rows), "latent")
    for row in (300, 10_000):
        with pytest.raises(UserError, match=r"whole\.arrow"):
            whole.row(row)


def test_a_row_longer_than_its_shape_is_refused(tmp_path):
    schema = text_schema((2, 3), {"padding": "drop"})
    shard = ArrowShard(write_shard(tmp_path / "x.arrow", schema, [np.zeros((3, 3), np.float16)]), "tokens")
    with pytest.raises(UserError, match="a row of more than 6 values"):
        shard.block(0)


def test_files_are_closed_when_nobody_holds_them(tmp_path):
    path = write_shard(tmp_path / "x.arrow", latents_schema((2, 2, 2), {}), random_rows(9, (2, 2, 2)))
    before = len(os.listdir("/proc/self/fd"))
    for reading in ("mapped", "read"):
        shards = [ArrowShard(path, "latent", reading) for _ in range(20)]
        block = shards[0].block(0).values
        expected = block.tolist()
        del shards
        assert block.tolist() == expected  # what was handed out holds the map
        del block
        assert len(os.listdir("/proc/self/fd")) == before


def test_the_index_is_views_of_the_file(tmp_path):
    manifest = Manifest.read(DataSet(rows=600, shards=2, latent=(1, 2, 2), text=(2, 2), held_out=50).write(tmp_path))
    assert manifest.samples == len(manifest.index.row) == 550 and len(manifest.validation.row) == 50
    assert all(not column.flags.owndata for column in manifest.index)
    assert [column.dtype.name for column in manifest.index] == ["int32", "int32", "int32", "int16"]
    assert manifest.index.row[[0, 299, 300]].tolist() == [0, 299, 0] and manifest.sources == {"synthetic": (0, 550)}


def test_an_empty_index_is_read(tmp_path):
    with pa.ipc.new_file(str(tmp_path / "none.arrow"), INDEX) as sink:
        sink.write_table(INDEX.empty_table())
    assert [len(column) for column in Index.read(tmp_path / "none.arrow")] == [0, 0, 0, 0]


def test_an_index_of_another_form_is_named(tmp_path):
    write_shard(tmp_path / "x.arrow", latents_schema((1, 1, 1), {}), random_rows(1, (1, 1, 1)))
    with pytest.raises(UserError, match=r"x\.arrow: .*columns \['key', 'latent'\]"):
        Index.read(tmp_path / "x.arrow")


def test_a_manifest_of_an_older_program_says_so(tmp_path):
    path = DataSet(rows=2, shards=1, latent=(1, 1, 1), text=(1, 1)).write(tmp_path)
    write_json(path, {key: value for key, value in read_json(path).items() if key != "sources"})
    with pytest.raises(UserError, match=r"manifest\.json: has no sources; .*run again"):
        Manifest.read(path)
