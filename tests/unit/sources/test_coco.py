import json
import tracemalloc
import zipfile

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.embedded.scenes import write_coco
from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources.zipped import ZippedFolder
from tests.pictures import zip_bytes


@pytest.fixture
def coco(tmp_path, make):
    """Writes 4 images of ids 7, 3, 12, 5 and their annotations; gives the keys of the source."""
    (tmp_path / "images").mkdir()
    images = []
    for number in (7, 3, 12, 5):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(make.jpeg(number))
        images.append({"id": number, "file_name": f"{number}.jpg", "license": 2, "coco_url": f"http://coco/{number}"})
    captions = [(90, 7, "seven late"), (20, 7, "seven  early"), (21, 3, "three"), (22, 12, "twelve"), (23, 5, "five")]
    document = {
        "images": images,
        "annotations": [{"id": i, "image_id": image, "caption": text} for i, image, text in captions],
        "licenses": [{"id": 2, "name": "CC BY", "url": "http://x"}],
    }

    def write(change=lambda document: None, text=None):
        change(document)
        path = tmp_path / "captions.json"
        path.write_text(json.dumps(document) if text is None else text)
        return {"images": str(tmp_path / "images"), "annotations": str(path)}

    return write


def test_images_in_the_order_of_their_ids_with_all_captions(collect, coco):
    found = collect("coco", **coco())
    assert [row["key"] for row in found.rows] == ["000000000003", "000000000005", "000000000007", "000000000012"]
    seven = found.json["000000000007"]
    assert (seven["caption"], seven["captions"]) == ("seven early", ["seven early", "seven late"])
    assert (seven["url"], seven["license"]) == ("http://coco/7", "CC BY")
    assert "attributes" not in seven


def test_shards_are_contiguous_and_complete(collect, coco):
    keys = [[row["key"][-2:] for row in collect("coco", shards=3, shard=shard, **coco()).rows] for shard in range(3)]
    assert keys == [["03", "05"], ["07"], ["12"]]


def test_attributes_go_along(collect, coco, tmp_path):
    (tmp_path / "attributes.json").write_text(json.dumps({"7": {"colour": "red"}}))
    found = collect("coco", attributes=str(tmp_path / "attributes.json"), **coco())
    assert found.json["000000000007"]["attributes"] == {"colour": "red"}
    assert "attributes" not in found.json["000000000003"]


def test_the_embedded_evaluation_set(collect, tmp_path):
    write_coco(tmp_path / "set", seed=0, count=6, two_objects=2)
    keys = {"images": "images", "annotations": "captions.json", "attributes": "attributes.json"}
    found = collect("coco", **{key: str(tmp_path / "set" / file) for key, file in keys.items()})
    assert len(found.json) == 6
    assert all(len(value["captions"]) == 2 and value["attributes"]["objects"] for value in found.json.values())


def test_a_missing_file_is_a_row(collect, coco, tmp_path):
    keys = coco()
    (tmp_path / "images" / "5.jpg").unlink()
    found = collect("coco", **keys)
    assert found.row["000000000005"]["reason"] == "missing_file"
    assert len(found.json) == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["images"].append({"id": 99}), "bad_row"),
        (lambda d: d["images"].append({"id": "99", "file_name": "7.jpg"}), "bad_row"),
        (lambda d: d["images"].append("99.jpg"), "bad_row"),
        (lambda d: d["images"].append({"id": 99, "file_name": "../captions.json"}), "unsafe_member"),
        (lambda d: d["images"].append({"id": 99, "file_name": "/etc/hostname"}), "unsafe_member"),
        (lambda d: d["images"].append({"id": 7, "file_name": "3.jpg"}), "duplicate_key"),
    ],
)
def test_bad_entries_are_rows_and_the_others_survive(collect, coco, change, reason):
    found = collect("coco", **coco(change))
    assert found.sidecar["info"]["bad"] == {reason: 1}
    assert len(found.rows) == 5
    assert len(found.json) == 4


def test_entries_of_one_id_share_a_shard(collect, coco):
    keys = coco(lambda d: d["images"].append({"id": 7, "file_name": "3.jpg"}))
    rows = [row for shard in range(4) for row in collect("coco", shards=4, shard=shard, **keys).rows]
    assert sorted(row["reason"] or "" for row in rows) == ["", "", "", "", "duplicate_key"]


def test_captions_that_are_none_and_images_without_any(collect, coco, capsys):
    def change(document):
        document["annotations"][:] = [
            {"id": 1, "image_id": 7, "caption": " \n "},
            {"id": 2, "image_id": 7, "caption": 5},
            {"id": 3, "image_id": 7, "caption": "good"},
            {"id": 4, "image_id": 1000, "caption": "of another image"},
            "no annotation",
        ]

    found = collect("coco", **coco(change))
    assert found.json["000000000007"]["captions"] == ["good"]
    assert found.row["000000000007"]["detail"] == "caption is not text"
    assert found.json["000000000003"]["caption"] is None
    assert found.row["000000000003"]["captioned"] is False
    assert "captions of 1 images that `images` does not list" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "text", "words"),
    [
        (lambda d: d.pop("annotations"), None, "no list 'annotations'"),
        (lambda d: d.pop("images"), None, "no list 'images'"),
        (lambda d: d.update(images={}), None, "no list 'images'"),
        (lambda d: d["images"].clear(), None, "its list 'images' is empty"),
        (lambda d: [row.pop("caption") for row in d["annotations"]], None, "no annotation has an image_id and a caption"),
        (lambda d: None, "[1, 2]", "no list 'images'"),
        (lambda d: None, '{"images": [', "not JSON"),
        (lambda d: None, "[" * 100_000, "not JSON"),
        (lambda d: None, "", "not JSON"),
    ],
)
def test_what_is_no_caption_file_names_the_key_and_the_file(collect, coco, change, text, words):
    with pytest.raises(UserError) as caught:
        collect("coco", **coco(change, text))
    assert str(caught.value).startswith("sources.mine.annotations: ")
    assert "captions.json" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("key", ["images", "annotations", "attributes"])
def test_a_missing_path_names_its_key(collect, coco, key):
    with pytest.raises(UserError, match=rf"^sources\.mine\.{key}: .*nowhere"):
        collect("coco", **(coco() | {key: "nowhere"}))


def test_attributes_must_be_an_object(collect, coco, tmp_path):
    (tmp_path / "attributes.json").write_text("[]")
    with pytest.raises(UserError, match=r"^sources\.mine\.attributes: .*must be an object"):
        collect("coco", attributes=str(tmp_path / "attributes.json"), **coco())


@pytest.fixture
def zipped(coco, tmp_path):
    """The same set as two zips: (keys, bytes of the images' zip, bytes of the annotations' zip)."""
    keys = coco()
    pictures = {f"val2014/{path.name}": path.read_bytes() for path in sorted((tmp_path / "images").iterdir())}
    annotations = {"annotations/captions_val2014.json": (tmp_path / "captions.json").read_bytes()}
    images, captions = zip_bytes(pictures), zip_bytes(annotations | {"annotations/instances_val2014.json": b"{}"})
    (tmp_path / "val2014.zip").write_bytes(images)
    (tmp_path / "annotations.zip").write_bytes(captions)
    keys = {"images": str(tmp_path / "val2014.zip"), "annotations": str(tmp_path / "annotations.zip")}
    return keys | {"member": "annotations/captions_val2014.json"}, images, captions


def test_zips_give_what_folders_give(collect, coco, zipped):
    keys, _, _ = zipped
    whole = collect("coco", **coco())
    found = collect("coco", **keys)
    assert found.files == whole.files
    assert [row["key"] for row in found.rows] == [row["key"] for row in whole.rows]


def test_zips_on_a_web_server_are_fetched_once_for_all_shards(collect, zipped, site, coco):
    keys, images, captions = zipped
    remote = {"images": site.add("/val2014.zip", images), "annotations": site.add("/annotations.zip", captions)}
    found = [collect("coco", shards=2, shard=shard, **(keys | remote)) for shard in (0, 1)]
    assert found[0].files | found[1].files == collect("coco", **coco()).files
    assert set(site.hits.values()) == {1}


def test_a_zip_on_a_hub(collect, zipped, hub):
    keys, images, captions = zipped
    start = hub(**{"val2014.zip": images, "annotations.zip": captions})
    found = collect("coco", **(keys | {"images": f"{start}/val2014.zip", "annotations": f"{start}/annotations.zip"}))
    assert len(found.json) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"member": "captions.json"}, r"^sources\.mine\.member: captions\.json of .*annotations/captions_val2014\.json"),
        ({"member": None}, r"^sources\.mine\.member: name one of the zip's files .*annotations/instances_val2014\.json"),
        ({"member": "annotations/instances_val2014.json"}, r"^sources\.mine\.annotations: .*no list 'images'"),
        ({"images": "captions.json"}, r"^sources\.mine\.images: .*captions\.json: no zip, or one that is cut off"),
        ({"images": "{val2014,annotations}.zip"}, r"^sources\.mine\.images: .*matches 2 files, and must be one"),
    ],
)
def test_zips_that_cannot_be_used_name_the_key(collect, zipped, tmp_path, change, words):
    change = {key: str(tmp_path / value) if key == "images" else value for key, value in change.items()}
    with pytest.raises(UserError, match=words):
        collect("coco", **(zipped[0] | change))


def test_a_zip_that_is_not_there_names_its_class(collect, zipped, site):
    with pytest.raises(UserError, match=r"^sources\.mine\.images: http.*val2014\.zip cannot be fetched: http_404"):
        collect("coco", **(zipped[0] | {"images": site.url("/val2014.zip")}))


@pytest.mark.parametrize(
    ("name", "pack", "reason"),
    [
        ("7.jpg", {"a/7.jpg": b"one", "b/7.jpg": b"other"}, "missing_file"),
        ("7.jpg", {"a/8.jpg": b"one"}, "missing_file"),
        ("../7.jpg", {"../7.jpg": b"one"}, "unsafe_member"),
        ("/7.jpg", {"/7.jpg": b"one"}, "unsafe_member"),
        ("7.jpg", {"7.jpg": b""}, "empty_file"),
        ("7.jpg", {"7.jpg": bytes(300 * 2**20)}, "too_large"),
    ],
)
def test_bad_members_of_a_zip_are_rows(collect, coco, tmp_path, name, pack, reason):
    def rename(document):
        document["images"] = [image | {"file_name": name} for image in document["images"] if image["id"] == 7]

    (tmp_path / "images.zip").write_bytes(zip_bytes(pack))
    found = collect("coco", **(coco(rename) | {"images": str(tmp_path / "images.zip")}))
    assert found.sidecar["info"]["bad"] == {reason: 1}


def test_a_bomb_that_lies_about_its_size_is_not_inflated(tmp_path):
    data = bytearray(zip_bytes({"bomb.jpg": bytes(200 * 2**20)}))
    honest = (200 * 2**20).to_bytes(4, "little")
    for _ in range(2):
        place = data.index(honest)
        data[place : place + 4] = (1000).to_bytes(4, "little")
    (tmp_path / "bomb.zip").write_bytes(data)
    tracemalloc.start()
    failure = ZippedFolder("here", tmp_path / "bomb.zip").read("bomb.jpg")
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()
    assert failure.reason == "unreadable_file"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_without_a_bound_are_not_read(tmp_path, make, method):
    (tmp_path / "a.zip").write_bytes(zip_bytes({"a.jpg": make.jpeg()}, method))
    assert "deflate" in ZippedFolder("here", tmp_path / "a.zip").read("a.jpg").detail


@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
@example(places=[(0.972889277136267, 0)])  # a member without a name
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_in_a_zip_is_an_error_for_people(tmp_path, make, places):
    whole = bytearray(zip_bytes({f"{number}.jpg": make.jpeg(number) for number in range(3)}))
    for share, value in places:
        whole[int(share * len(whole))] = value
    (tmp_path / "damaged.zip").write_bytes(whole)
    try:
        archive = ZippedFolder("here", tmp_path / "damaged.zip")
    except UserError:
        return
    for number in range(3):
        content = archive.read(f"{number}.jpg")
        assert isinstance(content, Unusable) or content == make.jpeg(number)


@pytest.fixture
def ids(tmp_path):
    def write(text, name="ids.csv"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return {"ids": str(tmp_path / name)}

    return write


PUBLISHED = """image_id,source,prompt,evaluation_seed
000000000012,coco-30k,"Twelve, said
twice.",41337
000000000003,coco-30k,three,63155
7,coco-30k, Seven ,1
"""


def test_a_table_of_ids_says_which_images_in_which_order_with_which_caption(collect, coco, ids):
    found = collect("coco", **coco(), **ids(PUBLISHED))
    assert [(key, value["caption"]) for key, value in found.json.items()] == [
        ("000000000012", "Twelve, said twice."),
        ("000000000003", "three"),
        ("000000000007", "Seven"),
    ]
    assert found.json["000000000007"]["captions"] == ["Seven", "seven early", "seven late"]
    parts = [list(collect("coco", shards=2, shard=shard, **coco(), **ids(PUBLISHED)).json) for shard in (0, 1)]
    assert parts == [["000000000012", "000000000003"], ["000000000007"]]


@pytest.mark.parametrize("text", ["\ufeff5\r\n\r\n000000000012\r\n", "image_id\n5\n12\n"])
def test_ids_without_captions(collect, coco, ids, text):
    found = collect("coco", **coco(), **ids(text, "ids.txt"))
    assert [(key, value["caption"]) for key, value in found.json.items()] == [
        ("000000000005", "five"),
        ("000000000012", "twelve"),
    ]


def test_a_column_called_caption_does_too(collect, coco, ids):
    assert collect("coco", **coco(), **ids("caption,image_id\nmine,5\n")).json["000000000005"]["caption"] == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image_id,prompt\n7,a\n99,b\n", r"ids\.csv:3: no image 99 in .*captions\.json"),
        ("image_id,prompt\n7,a\n5,b\n007,c\n", r"ids\.csv:4: image 7 again, it is in line 2"),
        ("7\n5\n7\n", r"ids\.csv:3: image 7 again, it is in line 1"),
        ("image_id,prompt\n7,\n", r"ids\.csv:2: no prompt"),
        ("image_id,prompt\n7,one, two\n", r"ids\.csv:2: more cells than columns"),
        ("image_id,prompt\n7\n", r"ids\.csv:2: no prompt"),
        ("id,prompt\n7,a\n", r"ids\.csv:1: 'id,prompt' is no image id"),
        ("seven\n", r"ids\.csv:1: 'seven' is no image id"),
        ("image_id\n-7\n", r"ids\.csv:2: '-7' is no image id"),
        ("image_id\n\u0667\n", r"ids\.csv:2: '.' is no image id"),
        ("1" * 5000, r"ids\.csv:1: '1{40}' is no image id"),
        ("", "no ids"),
        ("image_id,prompt\n", "no ids"),
        (b"image_id,prompt\n7,caf\xe9\n", "neither a CSV nor a text file in UTF-8"),
    ],
)
def test_ids_that_cannot_be_used_name_file_and_row(collect, coco, ids, text, words):
    with pytest.raises(UserError, match=rf"^sources\.mine\.ids: .*{words}"):
        collect("coco", **coco(), **ids(text))


def test_a_missing_file_of_ids_names_its_key(collect, coco):
    with pytest.raises(UserError, match=r"^sources\.mine\.ids: nowhere: cannot be read"):
        collect("coco", ids="nowhere", **coco())


def test_a_fraction_of_the_images(collect, coco):
    found = collect("coco", fraction=0.5, **coco())
    assert 0 < len(found.rows) == 4 - found.sidecar["info"]["passed_over"]["samples"] < 4


def test_a_table_of_ids_on_a_web_server_is_fetched(collect, coco, ids, site):
    there = {"ids": site.add("/coco_30k.csv", PUBLISHED.encode())}
    assert collect("coco", **coco(), **there).json == collect("coco", **coco(), **ids(PUBLISHED)).json
    with pytest.raises(UserError, match=r"^sources\.mine\.ids: http.*gone\.csv cannot be fetched: http_404"):
        collect("coco", **coco(), ids=site.url("/gone.csv"))
