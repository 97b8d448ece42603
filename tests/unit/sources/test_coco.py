import json

import pytest

from pipeline.embedded.scenes import write_coco
from pipeline.errors import UserError


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
