import hashlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config.running import Downloads
from pipeline.config.sources import HfParquetSource
from pipeline.download.files import Files
from pipeline.errors import UserError
from pipeline.sources.hf_parquet import open_shard
from pipeline.sources.in_turn import InTurn
from pipeline.sources.sample import Inputs


@pytest.fixture
def write(tmp_path, make):
    """Writes rows as name.parquet; an image is a struct of bytes and path, as the datasets library has it."""

    def go(name="train-00000", rows=range(6), image=lambda data: {"bytes": data, "path": "x.jpg"}, **columns):
        group = columns.pop("row_group_size", 2)
        images = [image(make.jpeg(row)) for row in rows]
        columns = {"caption": [f"caption {row}" for row in rows]} | columns
        table = pa.table({"image": images} | {key: value for key, value in columns.items() if value is not None})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=group)
        return str(tmp_path / "*.parquet")

    return go


def test_rows_are_samples_named_by_file_and_row(make, collect, write, tmp_path):
    found = collect("hf_parquet", files=write())
    assert list(found.json) == [f"train-00000_{row:08d}" for row in range(6)]
    assert found.files["train-00000_00000003.jpg"] == make.jpeg(3)
    assert found.json["train-00000_00000003"]["caption"] == "caption 3"
    assert found.row["train-00000_00000003"]["origin"] == f"{tmp_path}/train-00000.parquet:3"
    assert "captions" not in found.json["train-00000_00000003"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.binary())])])
def test_images_as_plain_bytes_and_as_a_struct(make, collect, tmp_path, kind):
    data = make.jpeg(1)
    cell = {"bytes": data} if pa.types.is_struct(kind) else data
    pq.write_table(pa.table({"image": pa.array([cell, None], kind), "caption": ["one", "two"]}), tmp_path / "a.parquet")
    found = collect("hf_parquet", files=str(tmp_path / "a.parquet"))
    assert found.files["a_00000000.jpg"] == data
    assert found.sidecar["info"]["bad"] == {"no_image": 1}


def test_a_path_without_bytes_is_no_image(collect, write):
    found = collect("hf_parquet", files=write(image=lambda data: {"bytes": None, "path": "/etc/hostname"}))
    assert found.sidecar["info"]["bad"] == {"no_image": 6}


def test_columns_of_all_kinds(make, collect, write):
    rows = range(3)
    path = write(
        rows=rows,
        caption=None,
        image_id=["b", "a", None],
        reference_strs=[["first", "second"], [], ["only"]],
        alt=["alt 0", "alt 1", None],
        meta=[{"license": "CC0", "scores": {"nsfw": 0.1 * row}} for row in rows],
        url=[f"http://x.org/{row}" for row in rows],
        digest=[hashlib.sha256(make.jpeg(row)).hexdigest() for row in (0, 1, 9)],
    )
    names = {"captions": ["reference_strs", "alt"], "license": "meta.license", "scores": {"nsfw": "meta.scores.nsfw"}}
    found = collect("hf_parquet", files=path, columns=names | {"id": "image_id", "sha256": "digest"})
    assert {key: value["caption"] for key, value in found.json.items()} == {"b": "first", "a": "alt 1"}
    assert found.json["b"]["captions"] == ["first", "second", "alt 0"]
    assert [row["url"] for row in found.rows] == [f"http://x.org/{row}" for row in rows]
    assert [row["license"] for row in found.rows] == ["CC0"] * 3
    assert found.row["a"]["scores"] == [("nsfw", pytest.approx(0.1))]
    assert found.row["train-00000_00000002"]["reason"] == "wrong_hash"


def test_files_are_dealt_out_in_turn(collect, write):
    for name in "cabed":
        path = write(name, range(2))
    keys = [[row["key"][0] for row in collect("hf_parquet", files=path, shards=2, shard=shard).rows] for shard in (0, 1)]
    assert ["".join(part) for part in keys] == ["aaccee", "bbdd"]


@pytest.mark.parametrize("shards", [3, 4, 5, 7])
def test_fewer_files_than_shards_are_shared_by_rows(collect, write, shards):
    write("a", range(10), row_group_size=3)
    path = write("b", range(7), row_group_size=100)
    parts = [[row["key"] for row in collect("hf_parquet", files=path, shards=shards, shard=n).rows] for n in range(shards)]
    assert all(parts)
    assert len({part[0][0] for part in parts}) == 2 and all(len({key[0] for key in part}) == 1 for part in parts)
    every = [key for part in parts for key in part]
    assert sorted(every) == [f"a_{row:08d}" for row in range(10)] + [f"b_{row:08d}" for row in range(7)]
    assert all(part == sorted(part) for part in parts)
    sizes = Counter({n: len(part) for n, part in enumerate(parts) if part[0][0] == "a"})
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_files_of_one_name_in_two_folders_are_told_apart(collect, write, tmp_path):
    for folder in ("en", "fr"):
        (tmp_path / folder).mkdir()
        write(f"{folder}/train", range(2))
    found = collect("hf_parquet", files=str(tmp_path / "*" / "train.parquet"))
    assert len(found.json) == 4


def test_files_of_a_web_server_are_deleted_unless_another_shard_needs_them(collect, write, site, tmp_path):
    for name in "ab":
        write(name, range(2))
        site.add(f"/{name}.parquet", (tmp_path / f"{name}.parquet").read_bytes())
    files = site.url("/{a,b}.parquet")
    assert len(collect("hf_parquet", files=files).json) == 4
    assert list((tmp_path / "downloads").rglob("*.parquet")) == []
    parts = [collect("hf_parquet", files=files, shards=4, shard=shard) for shard in range(4)]
    assert [list(part.json) for part in parts] == [["a_00000000"], ["b_00000000"], ["a_00000001"], ["b_00000001"]]
    assert site.hits == {"/a.parquet": 2, "/b.parquet": 2}


def test_files_of_a_hub(collect, write, hub, tmp_path):
    write("a")
    start = hub(**{"data/train-00000.parquet": (tmp_path / "a.parquet").read_bytes()})
    assert len(collect("hf_parquet", files=f"{start}/data/*.parquet").json) == 6


@pytest.mark.parametrize(("kind", "key"), [("webdataset", "path"), ("hf_parquet", "files")])
def test_what_signs_a_link_is_kept_nowhere(make, collect, write, site, tmp_path, kind, key):
    write("a", range(2))
    tar = make.tar([(f"{number}.jpg", make.jpeg(number)) for number in range(2)])
    site.add("/signed", tar if kind == "webdataset" else (tmp_path / "a.parquet").read_bytes())
    found = collect(kind, **{key: site.url("/signed?Signature=secret")})
    assert len(found.json) == 2
    assert "secret" not in str(found.rows) + str(found.json) + str(found.sidecar)
    with pytest.raises(UserError, match="http_404") as caught:
        collect(kind, bad=0.0, **{key: site.url("/none?Signature=secret")})
    assert "secret" not in str(caught.value)


def test_a_large_row_group_is_not_in_memory_as_a_whole(tmp_path):
    noise = np.random.default_rng(0).bytes(200 * 2**18)
    cells = [noise[place * 2**18 : (place + 1) * 2**18] for place in range(200)]
    table = pa.table({"image": cells, "caption": ["words"] * 200})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, write_batch_size=4)
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 1
    del table
    before = pa.total_allocated_bytes()
    source = HfParquetSource(kind="hf_parquet", files=str(tmp_path / "a.parquet"))
    listing = open_shard("mine", source, 0, Inputs(Files(tmp_path / "downloads", Downloads())))
    held = [pa.total_allocated_bytes() - before for _ in listing.samples]
    assert len(held) == 200 and max(held) < 40 * 2**20 < 200 * 2**18


def test_a_fraction_is_the_same_samples_each_time(collect, write):
    for name in "abcdefgh":
        path = write(name, range(4), row_group_size=4)
    some, more = (collect("hf_parquet", files=path, fraction=fraction) for fraction in (0.3, 0.6))
    assert some.json.keys() < more.json.keys()
    assert some.sidecar["info"]["passed_over"]["files"] == 5
    assert some.sidecar["info"]["passed_over"]["samples"] == 12 - len(some.rows)


def test_text_that_is_not_utf8_costs_its_caption_alone(make, collect, tmp_path):
    image = pa.array([make.jpeg(0), make.jpeg(1)])
    offsets = pa.array([0, 4, 5], pa.int32()).buffers()[1]
    text = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"caf\xe9k"))
    pq.write_table(pa.table({"image": image, "caption": text}), tmp_path / "a.parquet", use_dictionary=False)
    found = collect("hf_parquet", files=str(tmp_path / "a.parquet"))
    assert [row["detail"] for row in found.rows] == ["caption is not UTF-8", None]
    assert found.json["a_00000001"]["caption"] == "k"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image": "picture"}, "no column picture"),
        ({"captions": ["text", "words"]}, "no column text or words"),
        ({"id": "image_id"}, "no column image_id"),
        ({"scores": {"nsfw": "meta.nsfw"}}, r"no column meta\.nsfw"),
        ({"image": "caption"}, "column caption is of type string; it must hold the images' bytes"),
        ({"image": "image.path"}, r"column image\.path is of type string"),
    ],
)
def test_columns_that_are_not_there_are_named(collect, write, columns, words):
    with pytest.raises(UserError, match=rf"^sources\.mine\.files: .*train-00000\.parquet: {words}"):
        collect("hf_parquet", files=write(), columns=columns)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet" * 100])
def test_what_is_no_parquet_is_a_row(collect, write, tmp_path, content):
    path = write()
    (tmp_path / "bad.parquet").write_bytes(content)
    found = collect("hf_parquet", files=path)
    assert found.sidecar["info"]["bad"] == {"damaged_archive": 1}
    assert len(found.json) == 6


def test_a_damaged_page_ends_the_file_there(make, collect, write, tmp_path):
    path = write(rows=range(8))
    place = pq.read_metadata(tmp_path / "train-00000.parquet").row_group(2).column(0).data_page_offset
    content = bytearray((tmp_path / "train-00000.parquet").read_bytes())
    content[place : place + 40] = b"\xff" * 40
    (tmp_path / "train-00000.parquet").write_bytes(content)
    found = collect("hf_parquet", files=path)
    assert len(found.json) == 4
    (bad,) = [row for row in found.rows if row["status"] == "bad"]
    assert (bad["reason"], "after row 3" in bad["detail"]) == ("damaged_archive", True)


@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_is_rows_or_an_error_for_people(collect, write, tmp_path, places):
    path = write()
    content = bytearray((tmp_path / "train-00000.parquet").read_bytes())
    for share, value in places:
        content[int(share * len(content))] = value
    (tmp_path / "train-00000.parquet").write_bytes(content)
    try:
        found = collect("hf_parquet", files=path)
    except UserError as error:
        assert "no column" in str(error) or "is of type" in str(error)
    else:
        assert found.rows


def test_a_file_that_cannot_be_fetched_stops_a_shard_below_min_yield(collect, site):
    with pytest.raises(UserError, match=r"^sources\.mine\.files: 1 of 1 files of the shard cannot be received \(http_404 1\)"):
        collect("hf_parquet", files=site.url("/a.parquet"), bad=0.01)


def test_the_next_file_is_fetched_while_one_is_read_and_no_other():
    started = []

    class Counting:
        def fetch(self, reference):
            started.append(reference)
            return reference

    class Wanted:
        files, least_yield = Counting(), 0.0

    turn = iter(InTurn("sources.mine.files", "abcd", Wanted()))
    assert next(turn) == ("a", "a")
    assert set(started) <= {"a", "b"}
    assert [reference for reference, _ in turn] == ["b", "c", "d"]
    assert sorted(started) == ["a", "b", "c", "d"]
