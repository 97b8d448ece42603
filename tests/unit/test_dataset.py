"""Arrow shards and manifests as training reads them."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def reads():
    """Bytes that this process has asked files for so far, and how many calls that took; without this one's."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return np.array([int(counts["rchar"]), int(counts["syscr"])])


@pytest.fixture
def large(tmp_path):
    """Blocks of a megabyte; the last one is short."""
    values = random_rows(3 * BLOCK_ROWS - 10, (4, 16, 32))
    return write_shard(tmp_path / "x.arrow", latents_schema((4, 16, 32), {}), values), values


def test_a_block_is_one_read_of_a_megabyte_or_more(large):
    shard = ArrowShard(large[0], "latent", "read")
    itself = np.diff([reads(), reads()], axis=0)[0]
    for number in range(3):
        before = reads()
        size = shard.block(number).values.nbytes
        amount, calls = reads() - before - itself
        assert size <= amount < size + 16_384  # nothing twice
        assert calls <= 3  # the block, and the end of the file


def test_the_kernel_is_asked_for_all_values_of_a_mapped_block(large, monkeypatch):
    asked, advise = [], os.posix_fadvise
    monkeypatch.setattr(os, "posix_fadvise", lambda *request: asked.append(request) or advise(*request))
    values = ArrowShard(large[0], "latent").block(1).values
    offsets, lengths = [request[1] for request in asked], [request[2] for request in asked]
    assert offsets[1:] == [offset + length for offset, length in zip(offsets, lengths, strict=True)][:-1]
    assert {request[3] for request in asked} == {os.POSIX_FADV_WILLNEED} and sum(lengths) >= values.nbytes
    assert large[0].read_bytes()[offsets[0] :][: values.nbytes] == values.tobytes()


@pytest.mark.parametrize("reading", ["mapped", "read"])
def test_one_row_keys_and_length_read_nothing_of_the_blocks(large, reading):
    shard = ArrowShard(large[0], "latent", reading)
    before = reads()
    assert np.array_equal(shard.row(700), large[1][700])
    assert len(shard) == len(shard.keys) == len(large[1])
    assert (reads() - before)[0] < 65_536


def test_threads_share_a_shard(large):
    for reading in ("mapped", "read"):
        shard, numbers = ArrowShard(large[0], "latent", reading), [0, 1, 2] * 20
        with ThreadPoolExecutor(4) as threads:
            for number, block in zip(numbers, threads.map(shard.block, numbers), strict=True):
                assert np.array_equal(block.values, np.ravel(large[1][number * BLOCK_ROWS :][:BLOCK_ROWS]))


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
            ArrowShard(path, "latent", reading).block(1)
    with pytest.raises(UserError, match=r"y\.arrow"):
        ArrowShard(tmp_path / "y.arrow", "latent", reading)


def test_a_file_cut_while_it_is_read_is_named(tmp_path):
    path = write_shard(tmp_path / "x.arrow", latents_schema((2, 2, 2), {}), random_rows(300, (2, 2, 2)))
    shard = ArrowShard(path, "latent", "read")
    os.truncate(path, 3000)
    with pytest.raises(UserError, match=r"x\.arrow: .*too short"):
        shard.block(1)


def test_a_file_that_is_replaced_stays_as_it_was(tmp_path):
    schema, values = latents_schema((2, 2, 2), {}), random_rows(300, (2, 2, 2))
    path = write_shard(tmp_path / "x.arrow", schema, values)
    shards = [ArrowShard(path, "latent", reading) for reading in ("mapped", "read")]
    os.replace(write_shard(tmp_path / "y.arrow", schema, [-value for value in values]), path)
    for shard in shards:
        assert np.array_equal(shard.block(0).values[:8], values[0].ravel()) and np.array_equal(shard.row(299), values[299])


@pytest.mark.parametrize("reading", ["mapped", "read"])
def test_a_file_of_another_layout_is_refused(tmp_path, reading):
    rows, schema = random_rows(300, (2, 2, 2)), latents_schema((2, 2, 2), {})
    uneven = ArrowShard(write_shard(tmp_path / "uneven.arrow", schema, rows, block=100), "latent", reading)
    with pytest.raises(UserError, match="record batch 0 has 100 rows, not 256"):
        uneven.block(0)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    equal = [np.ones((2, 2, 2), np.float16)] * 300
    packed = ArrowShard(write_shard(tmp_path / "packed.arrow", schema, equal, options=options), "latent", reading)
    for read in (packed.row, packed.block):
        with pytest.raises(UserError, match="compressed"):
            read(0)
    with pytest.raises(UserError, match="not key and tokens"):
        ArrowShard(tmp_path / "uneven.arrow", "tokens", reading)
    whole = ArrowShard(write_shard(tmp_path / "whole.arrow", schema, rows), "latent", reading)
    for row in (-1, 300, 10_000):
        with pytest.raises(UserError, match=r"whole\.arrow"):
            whole.row(row)


def test_values_of_another_kind_are_refused(tmp_path):
    wide = pa.schema(
        [("key", pa.string()), ("latent", pa.list_(pa.float32(), 2))], metadata=latents_schema((2, 1, 1), {}).metadata
    )
    missing = wide.set(1, pa.field("latent", pa.list_(pa.float16(), 2)))
    for name, schema in (("wide", wide), ("missing", missing)):
        with pa.ipc.new_file(str(tmp_path / f"{name}.arrow"), schema) as sink:
            sink.write_table(pa.table({"key": ["a", "b"], "latent": [[1, 2], None]}, schema=schema))
    with pytest.raises(UserError, match=r"wide\.arrow: .*not lists of float16"):
        ArrowShard(tmp_path / "wide.arrow", "latent")
    with pytest.raises(UserError, match=r"missing\.arrow: .*rows without values"):
        ArrowShard(tmp_path / "missing.arrow", "latent").block(0)


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
    assert all(not column.flags.owndata for column in manifest.index[:5])
    assert [column.dtype.name for column in manifest.index[:5]] == ["int32", "int32", "int32", "int16", "int16"]
    assert manifest.index.row[[0, 299, 300]].tolist() == [0, 299, 0] and manifest.sources == {"synthetic": (0, 550)}


def test_an_empty_index_is_read(tmp_path):
    with pa.ipc.new_file(str(tmp_path / "none.arrow"), INDEX) as sink:
        sink.write_table(INDEX.empty_table())
    index = Index.read(tmp_path / "none.arrow")
    assert [len(column) for column in index[:5]] == [0, 0, 0, 0, 0] and index.bucket is None


def test_an_index_of_another_form_is_named(tmp_path):
    write_shard(tmp_path / "x.arrow", latents_schema((1, 1, 1), {}), random_rows(1, (1, 1, 1)))
    with pytest.raises(UserError, match=r"x\.arrow: .*columns \['key', 'latent'\]"):
        Index.read(tmp_path / "x.arrow")


def test_an_index_with_holes_is_named(tmp_path):
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), INDEX) as sink:
        sink.write_table(pa.table([pa.nulls(2, field.type) for field in INDEX], schema=INDEX))
    with pytest.raises(UserError, match=r"x\.arrow: not a readable Arrow file"):
        Index.read(tmp_path / "x.arrow")


def test_a_manifest_of_an_older_program_says_so(tmp_path):
    path = DataSet(rows=2, shards=1, latent=(1, 1, 1), text=(1, 1)).write(tmp_path)
    write_json(path, {key: value for key, value in read_json(path).items() if key != "sources"})
    with pytest.raises(UserError, match=r"manifest\.json: has no sources; .*run again"):
        Manifest.read(path)


def test_rows_of_buckets_come_in_their_shape_and_the_numbers_alone_are_read(tmp_path):
    shapes = [(16, 32), (32, 16), (20, 24)]
    path = DataSet(rows=3 * BLOCK_ROWS - 10, shards=1, latent=(4, 16, 32), text=(2, 2), buckets=shapes).write(tmp_path)
    manifest = Manifest.read(path)
    shard = manifest.latents(0, "read")
    itself, before = np.diff([reads(), reads()], axis=0)[0], reads()
    numbers = shard.row_buckets
    assert (reads() - before - itself)[0] < 40_000 and len(numbers) == len(shard) == 758
    assert np.array_equal(numbers, manifest.index.bucket)
    for row in (0, 300, 757):
        values = shard.row(row)
        start, end = shard.block(row // BLOCK_ROWS).starts[row % BLOCK_ROWS :][:2]
        assert values.shape == (4, *shapes[numbers[row]]) and end - start == values.size
    assert [bucket.samples for bucket in manifest.buckets] == np.bincount(numbers).tolist()
