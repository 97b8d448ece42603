import csv
import json
import os

import pandas as pd
import pytest

from pipeline.errors import UserError

TABLE = [
    {"file_name": "a.jpg", "text": "an a, quoted"},
    {"file_name": "sub/b.png", "text": "b 🦊"},
    {"file_name": "c.jpg", "text": ""},
]


@pytest.fixture
def photos(tmp_path, make):
    """A folder with a.jpg, c.jpg, sub/b.png and things that are no photos."""
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    (root / ".thumbs").mkdir()
    (root / "a.jpg").write_bytes(make.jpeg(1))
    (root / "c.jpg").write_bytes(make.jpeg(2))
    (root / "sub" / "b.png").write_bytes(make.encoded(make.photo(3), "PNG"))
    (root / "._a.jpg").write_bytes(b"resource fork")
    (root / ".thumbs" / "a.jpg").write_bytes(make.jpeg(4))
    (root / "README.md").write_text("words")
    return root


def write_table(root, kind, rows=TABLE):
    if kind == "jsonl":
        (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    elif kind == "csv":
        with (root / "metadata.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        pd.DataFrame(rows).to_parquet(root / "metadata.parquet")


def key_of(found, stem):
    return next(key for key in found.row if key.startswith(stem))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_table_of_captions(collect, photos, kind):
    write_table(photos, kind)
    found = collect("folder", path=str(photos))
    captions = {key: value["caption"] for key, value in found.json.items()}
    assert captions == {"a": "an a, quoted", "c": None, key_of(found, "sub_b"): "b 🦊"}
    assert len(found.rows) == 3


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_column_called_caption_does_too(collect, photos, kind):
    write_table(photos, kind, [{"file_name": "a.jpg", "caption": "from caption", "url": "http://a", "license": "CC0"}])
    found = collect("folder", path=str(photos))
    assert found.json["a"]["caption"] == "from caption"
    assert (found.row["a"]["url"], found.row["a"]["license"]) == ("http://a", "CC0")


def test_a_text_beside_each_image(collect, photos):
    (photos / "a.txt").write_text("a text\n")
    (photos / "c.txt").write_bytes(b"\xff\xfe")
    found = collect("folder", path=str(photos))
    assert found.json["a"]["caption"] == "a text"
    assert (found.row["c"]["captioned"], found.row["c"]["detail"]) == (False, "caption is not UTF-8")
    assert found.row[key_of(found, "sub_b")]["captioned"] is False


def test_images_that_the_table_leaves_out_are_samples_too(collect, photos):
    write_table(photos, "jsonl", TABLE[:1])
    (photos / "c.txt").write_text("beside")
    found = collect("folder", path=str(photos))
    assert len(found.json) == 3
    assert found.json["c"]["caption"] == "beside"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"file_name": "gone.jpg", "text": "x"}, "missing_file"),
        ({"file_name": "../outside.jpg", "text": "x"}, "unsafe_member"),
        ({"file_name": "/etc/hostname", "text": "x"}, "unsafe_member"),
        ({"file_name": "sub", "text": "x"}, "missing_file"),
        ({"file_name": f"{'x' * 300}.jpg", "text": "x"}, "unreadable_file"),
        ({"file_name": "a.jpg", "text": "again"}, "duplicate_key"),
        ({"file_name": None, "text": "x"}, "bad_row"),
    ],
)
def test_bad_rows_are_ledger_rows_and_the_others_survive(collect, photos, kind, row, reason):
    write_table(photos, kind, [TABLE[0], row, *TABLE[1:]])
    found = collect("folder", path=str(photos))
    assert found.sidecar["info"]["bad"] == {reason: 1}
    assert len(found.json) == 3
    assert found.json["a"]["caption"] == "an a, quoted"


@pytest.mark.parametrize("line", ["{cut", "[1]", '{"text": "x"}', '{"file_name": 7}', "[" * 100_000])
def test_bad_lines_of_jsonl(collect, photos, line):
    write_table(photos, "jsonl")
    table = photos / "metadata.jsonl"
    table.write_text(f"{line}\n\n{table.read_text()}")
    found = collect("folder", path=str(photos))
    assert found.sidecar["info"]["bad"] == {"bad_row": 1}
    assert found.row[key_of(found, "metadata_jsonl_1")]["origin"] == "metadata.jsonl:1"
    assert len(found.json) == 3


def test_an_unquoted_comma_in_csv_is_a_row_and_no_shorter_caption(collect, photos):
    (photos / "metadata.csv").write_text("file_name,text\na.jpg,one, two\nc.jpg,fine\nsub/b.png,fine too\n")
    found = collect("folder", path=str(photos))
    (bad,) = [row for row in found.rows if row["status"] == "bad"]
    assert (bad["reason"], bad["origin"], "more cells than columns" in bad["detail"]) == ("bad_row", "metadata.csv:2", True)
    assert found.json["c"]["caption"] == "fine"


def test_an_endless_csv_cell_is_a_row(collect, photos):
    (photos / "metadata.csv").write_text(f"file_name,text\na.jpg,{'x' * 200_000}\nc.jpg,fine\n")
    found = collect("folder", path=str(photos))
    assert found.sidecar["info"]["bad"] == {"bad_row": 1}
    assert found.json["c"]["caption"] == "fine"


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_caption_that_is_not_utf8_costs_itself_alone(collect, photos, kind):
    write_table(photos, kind, [{"file_name": "a.jpg", "text": "cafX"}, {"file_name": "c.jpg", "text": "ok"}])
    table = photos / f"metadata.{kind}"
    table.write_bytes(table.read_bytes().replace(b"cafX", b"caf\xe9"))
    found = collect("folder", path=str(photos))
    row = found.row["a"]
    assert (row["status"], row["captioned"], row["detail"]) == ("ok", False, "caption is not UTF-8")
    assert found.json["c"]["caption"] == "ok"


def test_file_names_that_are_not_utf8_or_hold_odd_characters(collect, photos, make):
    for number, name in enumerate([b"caf\xe9.jpg", b"new\nline.jpg", "ünï 猫.jpg".encode(), b"no.dots.here.jpg"]):
        with open(os.path.join(os.fsencode(photos), name), "wb") as file:
            file.write(make.jpeg(number))
    found = collect("folder", path=str(photos))
    assert len(found.json) == 7
    assert {"caf\\udce9.jpg", "new\\nline.jpg", "ünï 猫.jpg"} <= {row["origin"] for row in found.rows}


def test_two_files_of_one_stem_are_one_key(collect, photos, make):
    (photos / "a.png").write_bytes(make.encoded(make.photo(5), "PNG"))
    found = collect("folder", path=str(photos))
    assert [row["reason"] for row in found.rows if row["key"] == "a"] == [None, "duplicate_key"]


def test_a_pipe_does_not_block(collect, photos):
    os.mkfifo(photos / "pipe.jpg")
    assert collect("folder", path=str(photos)).row["pipe"]["reason"] == "missing_file"


def test_every_image_is_in_one_shard_and_stays_there(collect, photos, make):
    for number in range(20):
        (photos / f"n{number}.jpg").write_bytes(make.jpeg(number))

    def shards():
        return [{row["key"] for row in collect("folder", path=str(photos), shards=3, shard=shard).rows} for shard in range(3)]

    before = shards()
    assert sum(map(len, before)) == len(set().union(*before)) == 23
    assert all(before)
    (photos / "another.jpg").write_bytes(make.jpeg(99))
    assert all(old <= new for old, new in zip(before, shards(), strict=True))


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("metadata.csv", "name,text\na.jpg,x\n", r"no column file_name \(there are: name, text\)"),
        ("metadata.csv", "file_name,words\na.jpg,x\n", r"no column text or caption \(there are: file_name, words\)"),
        ("metadata.csv", "", r"no column file_name, text or caption \(there are: none\)"),
        ("metadata.parquet", "no parquet", "not a readable Parquet file"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(collect, photos, file, text, words):
    (photos / file).write_text(text)
    with pytest.raises(UserError, match=rf"{file}: {words}"):
        collect("folder", path=str(photos))


def test_two_tables_are_one_too_many(collect, photos):
    write_table(photos, "csv")
    write_table(photos, "jsonl")
    with pytest.raises(UserError, match=r"^sources\.mine\.path: metadata.jsonl and metadata.csv are both there"):
        collect("folder", path=str(photos))


def test_missing_and_empty_folders_name_their_key(collect, tmp_path):
    with pytest.raises(UserError, match=r"^sources\.mine\.path: no folder .*nowhere"):
        collect("folder", path=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^sources\.mine\.path: no images in .*empty"):
        collect("folder", path=str(tmp_path / "empty"))
