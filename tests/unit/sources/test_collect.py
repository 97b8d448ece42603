import io
import json
import tarfile

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.artifacts import LEDGER, read_sidecar
from pipeline.config.sources import KINDS
from pipeline.embedded import scenes
from pipeline.errors import UserError
from pipeline.ledger import REASONS
from pipeline.sources.collect import READERS
from pipeline.sources.shard import clean_scores
from pipeline.verify.command import faults

SCENES = {"count": 40, "px": 32, "seed": 3, "uncaptioned": 0.25}


def test_every_kind_of_the_configuration_has_a_reader():
    assert READERS.keys() == KINDS.keys()


def test_scenes_are_what_the_generator_draws(collect):
    found = collect("synthetic", **SCENES)
    scene = scenes.draw_scene(3, "train", 5, two_object_share=0.3)
    assert Image.open(io.BytesIO(found.files["00000005.png"])).tobytes() == scenes.render(scene, 32).tobytes()
    described = found.json["00000005"]
    assert scenes.Scene.from_attributes(described["attributes"]) == scene
    assert described["caption"] in (None, scenes.caption(scene))
    assert {row["captioned"] for row in found.rows} == {True, False}


def test_the_uncaptioned_share_is_chosen_by_index(collect):
    keys = {"px": 32, "uncaptioned": 0.25, "two_objects": 0}
    whole = collect("synthetic", count=400, **keys)
    assert 70 < sum(not row["captioned"] for row in whole.rows) < 130
    part = collect("synthetic", count=200, shards=2, shard=1, **keys)
    assert all(part.json[key]["caption"] == whole.json[key]["caption"] for key in part.json)
    assert all(row["captioned"] for row in collect("synthetic", count=50, px=32).rows)


def test_shards_are_contiguous_and_complete(collect):
    keys = [[row["key"] for row in collect("synthetic", shards=3, shard=shard, **SCENES).rows] for shard in range(3)]
    assert [key for part in keys for key in part] == [f"{index:08d}" for index in range(40)]
    assert [len(part) for part in keys] == [13, 13, 14]


def test_the_same_source_gives_the_same_bytes(collect, tmp_path):
    for name in ("one", "two"):
        collect("synthetic", out=tmp_path / name / "0.json", **SCENES)
    for suffix in ("json", "tar", "parquet"):
        assert (tmp_path / "one" / f"0.{suffix}").read_bytes() == (tmp_path / "two" / f"0.{suffix}").read_bytes()


def test_the_tar_holds_no_times_and_no_owners(collect):
    found = collect("synthetic", **SCENES)
    with tarfile.open(found.out.with_suffix(".tar")) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


def test_what_is_written_is_the_contract(collect):
    found = collect("synthetic", **SCENES)
    sidecar = read_sidecar(found.out, "images")
    assert (sidecar.rows("images"), sidecar.rows("ledger")) == (40, 40)
    assert pq.read_schema(sidecar.file("ledger")).equals(LEDGER)
    assert faults(found.out.parent) == []
    assert sorted(path.name for path in found.out.parent.iterdir()) == ["0.json", "0.parquet", "0.tar"]


@pytest.fixture
def mixed(tmp_path, make):
    """A folder of 8 photos and 2 files that are none."""
    for number in range(8):
        (tmp_path / "in" / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"{number}.jpg").write_bytes(make.jpeg(number))
    (tmp_path / "in" / "text.jpg").write_text("no picture")
    (tmp_path / "in" / "void.jpg").touch()
    return str(tmp_path / "in")


def test_bad_samples_up_to_the_share_are_rows(collect, mixed):
    found = collect("folder", path=mixed, bad=0.2)
    assert found.sidecar["info"]["bad"] == {"empty_file": 1, "not_an_image": 1}
    assert len(found.json) == 8


def test_more_bad_samples_stop_the_run_and_lose_nothing(collect, mixed, tmp_path):
    with pytest.raises(UserError) as caught:
        collect("folder", path=mixed, bad=0.19)
    message, rejected = str(caught.value), tmp_path / "out" / "0.rejected.parquet"
    assert message.startswith("sources.mine: 8 of 10 wanted samples of shard 0 were received, a share below min_yield 0.81")
    assert "it failed for empty_file 1, not_an_image 1, most for empty_file (0 bytes)" in message
    assert "lower sources.mine.min_yield" in message
    assert str(rejected) in message
    assert "\n" not in message
    assert [path.name for path in rejected.parent.iterdir()] == [rejected.name]
    rows = {row["key"]: row for row in pq.read_table(rejected).to_pylist()}
    assert (rows["void"]["reason"], rows["text"]["reason"], len(rows)) == ("empty_file", "not_an_image", 10)
    collect("folder", path=mixed, bad=0.2)
    assert not rejected.exists()


def test_images_below_the_smallest_side_are_rows_with_their_size(collect, mixed):
    found = collect("folder", path=mixed, min_side=64)
    assert found.json == {}
    assert (found.row["0"]["reason"], found.row["0"]["width"], found.row["0"]["height"]) == ("too_small", 48, 40)


def test_images_are_stored_at_the_side_asked_for(collect, mixed):
    found = collect("folder", path=mixed, store_side=20)
    described = found.json["0"]
    assert (described["width"], described["height"]) == (24, 20)
    assert (described["original_width"], described["original_height"]) == (48, 40)
    assert Image.open(io.BytesIO(found.files["0.jpg"])).size == (24, 20)
    assert (found.row["0"]["width"], found.row["0"]["height"]) == (48, 40)


def test_a_shard_that_is_not_there_names_the_key(collect):
    with pytest.raises(UserError, match=r"^SHARD 2: sources\.mine\.shards is 2, so give 0 to 1"):
        collect("synthetic", shards=2, shard=2, **SCENES)


def test_more_shards_than_scenes_leave_empty_ones(collect, capsys):
    assert collect("synthetic", count=1, px=32, shards=2, shard=0).rows == []
    assert "fewer shards would do" in capsys.readouterr().err


def test_hostile_metadata_can_be_stored(collect, tmp_path, make):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(make.jpeg())
    hostile = {"file_name": "a.jpg", "text": "\ud83d", "url": "http://x/\udfff", "license": {"deep": 1}}
    rows = [hostile, {"file_name": "\ud800.jpg"}]
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = collect("folder", path=str(tmp_path / "in"))
    assert (found.row["a"]["status"], found.row["a"]["url"], found.row["a"]["license"]) == ("ok", None, None)
    assert found.sidecar["info"]["bad"] == {"missing_file": 1}
    json.dumps(found.rows).encode("utf-8")


def test_what_was_not_wanted_is_no_failure(collect, tmp_path, make):
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(make.encoded(make.photo(number, 24 + 8 * number, 40)))
    found = collect("folder", path=str(tmp_path / "in"), bad=0.0, min_side=40)
    assert found.sidecar["info"]["bad"] == {"too_small": 2}
    assert len(found.json) == 2


def test_the_last_line_counts_what_became_of_the_samples(collect, mixed, capsys):
    collect("folder", path=mixed)
    assert capsys.readouterr().err.endswith("collect mine 0: 10 seen, 8 stored; empty_file 1, not_an_image 1\n")


def test_a_fraction_is_the_same_samples_each_time_and_within_every_larger_one(collect, mixed, capsys):
    whole = collect("synthetic", **SCENES)
    some, more = (collect("synthetic", fraction=fraction, **SCENES) for fraction in (0.3, 0.6))
    assert 0 < len(some.rows) < len(more.rows) < len(whole.rows) == 40
    assert some.json.keys() < more.json.keys()
    assert some.json == {key: whole.json[key] for key in some.json}
    passed = 40 - len(more.rows)
    assert more.sidecar["info"]["passed_over"] == {"files": 0, "samples": passed}
    assert f"stored; {passed} passed over by `fraction`" in capsys.readouterr().err
    part = collect("folder", path=mixed, fraction=0.5)
    assert 0 < len(part.rows) == 10 - part.sidecar["info"]["passed_over"]["samples"] < 10


def write_fields(tmp_path, make, *rows):
    """A tar of a sample for each of `rows`, the fields of its key.json."""
    names = [f"{number:05d}" for number in range(len(rows))]
    members = [
        member
        for name, fields in zip(names, rows, strict=True)
        for member in ((f"{name}.jpg", make.jpeg(int(name))), (f"{name}.json", json.dumps(fields).encode()))
    ]
    (tmp_path / "fields.tar").write_bytes(make.tar(members))
    return str(tmp_path / "fields.tar")


def test_licences_are_counted_and_the_source_names_the_rest(collect, tmp_path, make):
    path = write_fields(tmp_path, make, {"license": "CC0"}, {"license": "CC0"}, {"license": " "}, {"license": 7}, {})
    found = collect("webdataset", path=path)
    assert found.sidecar["info"]["licences"] == {"none given": 3, "CC0": 2}
    assert [row["license"] for row in found.rows] == ["CC0", "CC0", None, None, None]
    for role in ("real", "evaluation"):
        found = collect("webdataset", path=path, license="CC BY 4.0", role=role)
        assert found.sidecar["info"]["licences"] == {"CC BY 4.0": 3, "CC0": 2}
        assert [row["license"] for row in found.rows] == ["CC0", "CC0", "CC BY 4.0", "CC BY 4.0", "CC BY 4.0"]
        assert found.json["00004"]["license"] == "CC BY 4.0"


def test_licences_that_are_free_text_are_bounded(collect, tmp_path, make, monkeypatch):
    monkeypatch.setattr("pipeline.sources.collect.MAX_LICENCES", 2)
    path = write_fields(tmp_path, make, *({"license": f"{letter * 1000}"} for letter in "abcdd"))
    found = collect("webdataset", path=path)
    assert found.sidecar["info"]["licences"] == {"d" * 200: 2, "a" * 200: 1, "others": 2}


def test_scores_go_along_where_they_are_numbers(collect, tmp_path, make):
    names = {"nsfw": "punsafe", "aesthetic": "scores.aesthetic"}
    path = write_fields(
        tmp_path,
        make,
        {"punsafe": 0.25, "scores": {"aesthetic": 5}},
        {"punsafe": None},
        {"punsafe": "0.5", "scores": 7},
        {"punsafe": float("nan"), "scores": {"aesthetic": "UNLIKELY"}},
        {"punsafe": 1e300, "scores": {"aesthetic": [1]}},
    )
    found = collect("webdataset", path=path, scores=names)
    scores = [row["scores"] for row in found.rows]
    assert scores == [[("nsfw", 0.25), ("aesthetic", 5.0)], None, [("nsfw", 0.5)], None, None]
    assert found.json["00000"]["scores"] == {"nsfw": 0.25, "aesthetic": 5.0}
    assert "scores" not in found.json["00001"]
    notes = [row["detail"] for row in found.rows]
    assert notes == [None, None, None, *["score nsfw is no number; score aesthetic is no number"] * 2]


def test_scores_are_bounded_in_number_and_name():
    scores, notes = clean_scores({f"{number:02d}{'x' * 100}": number for number in range(40)})
    assert len(scores) == 32
    assert {len(name) for name in scores} == {64}
    assert notes == ("40 scores, the first 32 are kept",)
    assert clean_scores([1, 2]) == clean_scores(None) == ({}, ())


def test_unsafe_images_are_left_out_and_are_no_failure(collect, tmp_path, make):
    fields = [{"a": 0.2, "b": 0.1}, {"a": 0.21}, {"b": 0.834567}, {}, {"c": 9}]
    names = {"nsfw": "a", "prompt_nsfw": "b", "other": "c"}
    found = collect("webdataset", path=write_fields(tmp_path, make, *fields), scores=names, max_nsfw=0.2, bad=0.0)
    assert [row["reason"] for row in found.rows] == [None, "nsfw", "nsfw", None, None]
    assert [row["detail"] for row in found.rows[1:3]] == ["nsfw score 0.21 above 0.2", "prompt_nsfw score 0.8346 above 0.2"]
    assert found.rows[1]["scores"] == [("nsfw", pytest.approx(0.21))]
    assert len(collect("webdataset", path=str(tmp_path / "fields.tar"), scores=names).json) == 5


def test_every_class_of_failure_is_explained():
    assert all(reason.isidentifier() and words for reason, words in REASONS.items())
