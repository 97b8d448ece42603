import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources.webdataset import read_tar

SAMPLES = 6


def link(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.fixture
def folder(tmp_path):
    """Writes tars: folder(name=[members])."""

    def write(**tars):
        for name, content in tars.items():
            (tmp_path / f"{name}.tar").write_bytes(content)
        return str(tmp_path / "*.tar")

    return write


def trio(make, number, caption=None):
    stem = f"{number:05d}"
    fields = {"caption": f"json {number}", "url": f"https://x.org/{number}", "license": "CC BY 4.0", "width": 1}
    text = f"caption {number}".encode() if caption is None else caption
    return [(f"{stem}.jpg", make.jpeg(number)), (f"{stem}.json", json.dumps(fields).encode()), (f"{stem}.txt", text)]


def pairs(make, numbers=range(SAMPLES)):
    return [member for number in numbers for member in trio(make, number)[::2]]


def test_samples_with_captions_and_metadata(make, collect, folder):
    found = collect("webdataset", path=folder(a=make.tar(trio(make, 1) + trio(make, 2))))
    assert [row["key"] for row in found.rows] == ["00001", "00002"]
    assert found.files["00001.jpg"] == make.jpeg(1)
    assert found.json["00001"] == {
        "key": "00001", "caption": "caption 1", "width": 48, "height": 40, "original_width": 48, "original_height": 40,
        "sha256": found.row["00001"]["sha256"], "source": "mine", "url": "https://x.org/1", "license": "CC BY 4.0",
    }  # fmt: skip
    assert found.row["00002"]["url"] == "https://x.org/2"
    assert found.row["00002"]["origin"].endswith("a.tar:00002.jpg")


def test_the_caption_is_that_of_the_text_then_of_the_json(make, collect, folder):
    png = make.encoded(make.photo(4), "PNG")
    members = [*trio(make, 1)[:2], *trio(make, 2, b" \n"), *trio(make, 3, b"caf\xe9"), ("4.png", png)]
    found = collect("webdataset", path=folder(a=make.tar(members)))
    assert [found.json[key]["caption"] for key in found.json] == ["json 1", "json 2", "json 3", None]
    assert found.row["00003"]["detail"] == "caption is not UTF-8"
    assert [row["captioned"] for row in found.rows] == [True, True, True, False]


def test_a_caption_that_is_not_utf8_is_no_caption(make, collect, folder):
    found = collect("webdataset", path=folder(a=make.tar([("a.jpg", make.jpeg()), ("a.txt", b"\xff\xfeh\0i\0"), *pairs(make)])))
    row = found.row["a"]
    assert (row["status"], row["captioned"], row["detail"]) == ("ok", False, "caption is not UTF-8")
    assert found.json["a"]["caption"] is None
    assert len(found.json) == SAMPLES + 1


@pytest.mark.parametrize("text", ["x" * 10_000, "🦊 👩‍👩‍👧", "كلب يجري على الشاطئ", "שלום עולם"])
def test_unusual_captions_are_kept(make, collect, folder, text):
    found = collect("webdataset", path=folder(a=make.tar([("a.jpg", make.jpeg()), ("a.txt", text.encode())])))
    assert found.json["a"]["caption"] == text
    assert found.row["a"]["captioned"]


@pytest.mark.parametrize("table", [b"{cut", b"[1]", b"[" * 100_000, b'{"caption": 7, "url": [1]}', b"\xff"])
def test_a_bad_json_costs_its_fields_and_not_the_image(make, collect, folder, table):
    found = collect("webdataset", path=folder(a=make.tar([("a.jpg", make.jpeg()), ("a.json", table), *pairs(make)])))
    assert (found.row["a"]["status"], found.row["a"]["captioned"], found.row["a"]["url"]) == ("ok", False, None)
    assert found.row["a"]["detail"]
    assert len(found.json) == SAMPLES + 1


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "..\\x.jpg", "C:\\x.jpg"])
def test_paths_that_leave_the_folder_are_unsafe(make, collect, folder, name):
    members = pairs(make)
    found = collect("webdataset", path=folder(a=make.tar([*members[:6], (name, make.jpeg(9)), *members[6:]])))
    bad = [row for row in found.rows if row["status"] == "bad"]
    assert [row["reason"] for row in bad] == ["unsafe_member"]
    assert name in bad[0]["origin"].replace("\\\\", "\\")
    assert len(found.json) == SAMPLES


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_unsafe(make, collect, folder, kind):
    members = pairs(make)
    found = collect("webdataset", path=folder(a=make.tar([*members[:6], link("evil.jpg", kind), *members[6:]])))
    (bad,) = [row for row in found.rows if row["status"] == "bad"]
    assert (bad["reason"], bad["origin"].rpartition(":")[2]) == ("unsafe_member", "evil.jpg")
    assert found.sidecar["info"]["bad"] == {"unsafe_member": 1}
    assert len(found.json) == SAMPLES


def test_members_without_an_image(make, collect, folder):
    found = collect("webdataset", path=folder(a=make.tar([("a.txt", b"alone"), ("b.npy", b"1"), *pairs(make)])))
    assert (found.row["a"]["reason"], found.row["b"]["reason"]) == ("no_image", "no_image")
    assert found.row["a"]["captioned"]
    assert len(found.json) == SAMPLES


def test_a_second_sample_of_a_key_is_a_duplicate_within_and_across_tars(make, collect, folder):
    twice = make.tar([("a.jpg", make.jpeg(1)), ("a.jpg", make.jpeg(2)), ("b.jpg", make.jpeg(3)), ("a.jpg", make.jpeg(4))])
    found = collect("webdataset", path=folder(a=twice, b=make.tar([("b.jpg", make.jpeg(5)), ("c.jpg", make.jpeg(6))])))
    assert [row["reason"] for row in found.rows] == [None, "duplicate_key", None, "duplicate_key", "duplicate_key", None]
    assert found.files["a.jpg"] == make.jpeg(1)
    assert "a.tar:b.jpg" in found.rows[4]["detail"]


def test_a_bad_image_leaves_its_key_to_a_good_one(make, collect, folder):
    found = collect("webdataset", path=folder(a=make.tar([("a.jpg", b"text"), ("b.jpg", make.jpeg(1)), ("a.jpg", make.jpeg(2))])))
    assert [row["reason"] for row in found.rows] == ["not_an_image", None, None]
    assert found.files["a.jpg"] == make.jpeg(2)


def test_bad_images_are_rows_and_their_neighbours_survive(make, collect, folder):
    bad = {"truncated": make.jpeg()[:-400], "not_an_image": b"<html>", "empty_file": b""}
    members = pairs(make)
    for place, (reason, data) in enumerate(bad.items()):
        members[4 * place : 4 * place] = [(f"{reason}.jpg", data), (f"{reason}.txt", b"a caption")]
    found = collect("webdataset", path=folder(a=make.tar(members)))
    assert {row["key"]: row["reason"] for row in found.rows if row["status"] == "bad"} == {reason: reason for reason in bad}
    assert list(found.json) == [f"{number:05d}" for number in range(SAMPLES)]


def test_names_of_all_kinds_become_keys_webdataset_reads(make, collect, folder):
    names = ["./plain.jpg", "sub/dir/x.JPG", "a b.jpg", "ünï.jpg", "dots.in.name.jpg", "x" * 95 + ".jpg", "._hidden.jpg"]
    found = collect("webdataset", path=folder(a=make.tar([(name, make.jpeg(i)) for i, name in enumerate(names)])))
    assert len(found.rows) == len(names) - 1
    assert len(found.json) == len(names) - 2  # "dots" has the suffix in.name.jpg, as for webdataset
    assert found.row["dots"]["reason"] == "no_image"
    read = list(webdataset.WebDataset(str(found.out.with_suffix(".tar")), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in read] == list(found.json)


def test_the_webdataset_package_reads_back_what_was_collected(make, collect, folder):
    found = collect("webdataset", path=folder(a=make.tar([m for number in range(SAMPLES) for m in trio(make, number)])))
    read = list(webdataset.WebDataset(str(found.out.with_suffix(".tar")), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in read] == [f"{number:05d}" for number in range(SAMPLES)]
    for number, sample in enumerate(read):
        assert sample["json"]["caption"] == f"caption {number}"
        assert np.array_equal(sample["jpg"], np.asarray(Image.open(io.BytesIO(make.jpeg(number)))))


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars(make, collect, folder, kind):
    found = collect("webdataset", path=folder(a=make.tar(pairs(make), kind)))
    assert len(found.json) == SAMPLES


def test_tars_are_dealt_out_in_turn(make, collect, folder, tmp_path):
    path = folder(**{name: make.tar([(f"{name}.jpg", make.jpeg())]) for name in "cabed"})
    keys = [[row["key"] for row in collect("webdataset", path=path, shards=2, shard=shard).rows] for shard in (0, 1)]
    assert keys == [["a", "c", "e"], ["b", "d"]]


def test_more_shards_than_tars_leaves_an_empty_shard_and_says_so(make, collect, folder, capsys):
    found = collect("webdataset", path=folder(a=make.tar(pairs(make))), shards=3, shard=2)
    assert found.rows == []
    assert "sources.mine: shard 2 of 3 is empty" in capsys.readouterr().err


@pytest.mark.parametrize("tars", [{}, {"a": [], "b": []}])
def test_an_empty_source_names_its_key(make, collect, folder, tars):
    with pytest.raises(UserError, match=r"^sources\.mine\.path: (.* matches no file|no samples in 2 tars)"):
        collect("webdataset", path=folder(**{name: make.tar(members) for name, members in tars.items()}))


def test_an_empty_tar_beside_a_full_one_is_no_fault(make, collect, folder):
    assert collect("webdataset", path=folder(a=make.tar([]), b=make.tar(pairs(make))), shards=2).rows == []


def test_a_folder_as_path_gets_advice(collect, tmp_path):
    with pytest.raises(UserError, match=r"is a folder; name its tars"):
        collect("webdataset", path=str(tmp_path))


def test_tars_on_a_web_server_are_fetched_in_turn_and_deleted_at_the_end(make, collect, site, tmp_path):
    for number in range(5):
        site.add(f"/t-{number:03d}.tar", make.tar(pairs(make, [number])))
    keys = {"path": site.url("/t-{000..004}.tar"), "shards": 2}
    found = collect("webdataset", **keys)
    assert list(found.json) == ["00000", "00002", "00004"]
    assert found.row["00002"]["origin"] == site.url("/t-002.tar:00002.jpg")
    assert [path for path, _ in site.requests] == ["/t-000.tar", "/t-002.tar", "/t-004.tar"]
    assert list((tmp_path / "downloads").rglob("*.tar")) == []
    again = collect("webdataset", fetching={"keep": True}, **keys)
    assert again.files == found.files
    assert sorted(path.name for path in (tmp_path / "downloads").rglob("*.tar")) == ["t-000.tar", "t-002.tar", "t-004.tar"]
    asked = site.hits.total()
    assert collect("webdataset", **keys).files == found.files
    assert site.hits.total() == asked


def test_tars_of_a_hub(make, collect, hub, tmp_path):
    files = {f"data/{number}.tar": make.tar(pairs(make, [number])) for number in range(3)}
    start = hub(**files, **{"README.md": b"words"})
    for pattern in ("data/*.tar", "data/{0..2}.tar"):
        found = collect("webdataset", path=f"{start}/{pattern}")
        assert list(found.json) == ["00000", "00001", "00002"]
        assert found.row["00001"]["origin"] == f"{start}/data/1.tar:00001.jpg"
        assert [path for path in (tmp_path / "downloads").rglob("*.tar") if path.is_file()] == []


def test_what_was_fetched_stays_if_the_shard_is_not_made(make, collect, site, tmp_path):
    url = site.add("/a.tar", make.tar([*pairs(make), ("bad.jpg", b"none")]))
    with pytest.raises(UserError, match="min_yield"):
        collect("webdataset", path=url, bad=0.0)
    assert len(collect("webdataset", path=url).rows) == SAMPLES + 1
    assert site.hits.total() == 1


def test_a_tar_that_cannot_be_fetched_is_a_row(make, collect, site):
    site.add("/0.tar", make.tar(pairs(make, [0])))
    site.add("/2.tar", make.tar(pairs(make, [2])))
    found = collect("webdataset", path=site.url("/{0..2}.tar"), bad=0.5)
    assert list(found.json) == ["00000", "00002"]
    assert found.sidecar["info"]["bad"] == {"http_404": 1}
    assert [row["origin"] for row in found.rows if row["status"] == "bad"] == [site.url("/1.tar")]


def test_too_few_tars_stop_the_shard_with_one_line(make, collect, site, tmp_path):
    site.add("/0.tar", make.tar(pairs(make, [0])))
    with pytest.raises(UserError) as caught:
        collect("webdataset", path=site.url("/{0..9}.tar"), bad=0.2)
    message = str(caught.value)
    assert message.startswith(
        "sources.mine.path: 3 of 10 files of the shard cannot be received (http_404 3), which is below min_yield"
    )
    assert "lower sources.mine.min_yield" in message and "\n" not in message
    assert list((tmp_path / "out").glob("*.tar")) == []


def test_a_fraction_takes_whole_tars_first_and_fetches_no_other(make, collect, site):
    for number in range(10):
        site.add(f"/{number}.tar", make.tar(pairs(make, range(10 * number, 10 * number + 10))))
    found = collect("webdataset", path=site.url("/{0..9}.tar"), fraction=0.25)
    counts = Counter(int(key) // 10 for key in found.json)
    assert sorted(counts.values())[1:] == [10, 10] and 0 < min(counts.values()) < 10
    assert len(site.hits) == 3
    passed = {"files": 7, "samples": 30 - len(found.json)}
    assert found.sidecar["info"]["passed_over"] == passed


def test_a_missing_one_of_several_local_tars_is_a_row(make, collect, tmp_path):
    (tmp_path / "0.tar").write_bytes(make.tar(pairs(make)))
    found = collect("webdataset", path=f"{tmp_path}/{{0,1}}.tar")
    assert found.sidecar["info"]["bad"] == {"missing_file": 1}
    assert len(found.json) == SAMPLES


def test_a_cut_tar_gives_what_came_before_and_one_row(make, collect, folder):
    whole = make.tar(pairs(make))
    cut = whole.index(make.jpeg(4)) + 100
    found = collect("webdataset", path=folder(a=whole[:cut], b=make.tar(pairs(make, range(10, 12)))))
    assert list(found.json) == ["00000", "00001", "00002", "00003", "00010", "00011"]
    assert found.sidecar["info"]["bad"] == {"truncated_archive": 1}
    (row,) = [row for row in found.rows if row["status"] == "bad"]
    assert row["origin"].endswith("a.tar")
    assert "00004.jpg" in row["detail"]


@pytest.mark.parametrize(("content", "reason"), [(b"", "truncated_archive"), (b"no tar" * 500, "damaged_archive")])
def test_what_is_no_tar_is_a_row(make, collect, folder, content, reason):
    found = collect("webdataset", path=folder(a=content, b=make.tar(pairs(make))))
    assert found.sidecar["info"]["bad"] == {reason: 1}
    assert len(found.json) == SAMPLES


def test_a_damaged_header_ends_the_tar_there(make, collect, folder):
    whole = bytearray(make.tar(pairs(make)))
    header = whole.index(b"00003.jpg")
    whole[header + 120 : header + 140] = b"\xff" * 20
    found = collect("webdataset", path=folder(a=bytes(whole)))
    assert list(found.json) == ["00000", "00001", "00002"]
    assert found.sidecar["info"]["bad"] == {"damaged_archive": 1}


def read(data):
    return list(read_tar(io.BytesIO(data), "x.tar"))


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_cut_loses_a_sample_before_it(make, data):
    members = pairs(make)
    kind = data.draw(st.sampled_from(["w", "w:gz"]))
    whole = make.tar(members, kind)
    cut = data.draw(st.integers(0, len(whole) - 1))
    samples = read(whole[:cut])
    good = [raw for raw in samples if isinstance(raw.image, bytes)]
    assert [raw.image for raw in good] == [make.jpeg(number) for number in range(len(good))]
    if kind == "w":
        ends = [whole.index(make.jpeg(number)) + len(make.jpeg(number)) for number in range(SAMPLES)]
        assert len(good) == sum(end <= cut for end in ends)
        end_mark = 512 * -(-(whole.index(b"caption 5") + 9) // 512) + 512
        broken = cut < end_mark
        assert [raw.image.reason for raw in samples[len(good) :]] == ["truncated_archive"] * broken


@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_never_crashes(make, places):
    whole = bytearray(make.tar(pairs(make)))
    for share, value in places:
        whole[int(share * len(whole))] = value
    for raw in read(bytes(whole)):
        assert isinstance(raw.image, bytes | Unusable)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [2**30, 2**60])
def test_a_member_that_claims_to_be_huge_is_neither_read_nor_waited_for(size):
    info = tarfile.TarInfo("big.jpg")
    info.size = size
    samples = read(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 5000)
    assert [raw.image.reason for raw in samples] == ["too_large", "truncated_archive"]
