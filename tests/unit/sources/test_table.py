import gzip
import json
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts import read_sidecar
from pipeline.errors import UserError
from pipeline.sources.lookup import TableReader
from pipeline.sources.table import GROUP_ROWS
from pipeline.verify.command import faults
from tests.hub import COMMIT

SHA = "ab" * 32


@pytest.fixture
def lines(tmp_path):
    """A file of JSON lines: lines(row, row, …)."""

    def go(*rows, name="t.jsonl"):
        path = tmp_path / name
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return str(path)

    return go


def test_a_url_list_keeps_its_order_and_its_columns_get_their_names(table, lines):
    columns = {
        "id": "key", "url": "link", "captions": ["text", "more.texts"], "license": "rights", "sha256": "hash",
        "scores": {"nsfw": "s.punsafe", "aesthetic": "s.ae"},
    }  # fmt: skip
    first = {"key": 7, "link": " http://x/1 ", "text": " a  b ", "more": {"texts": ["c", None, "d"]}, "rights": "CC0"}
    rows = [first | {"hash": SHA.upper(), "s": {"punsafe": 0.5, "ae": "7"}}, {"key": "a", "link": "http://x/0", "more": None}]
    made = table("url_list", table=lines(*rows), columns=columns)
    plain = {"note": None, "fault": None}
    scores = [("nsfw", 0.5), ("aesthetic", 7.0)]
    assert made.rows == [
        plain
        | {"id": "7", "url": "http://x/1", "captions": ["a b", "c", "d"], "license": "CC0", "sha256": SHA, "scores": scores},
        plain | {"id": "a", "url": "http://x/0", "captions": [], "license": None, "sha256": None, "scores": []},
    ]


def test_without_ids_equal_urls_have_equal_ids(table, lines):
    made = table("url_list", table=lines(*({"url": f"http://x/{number}", "caption": "c"} for number in (1, 2, 1))))
    ids = [row["id"] for row in made.rows]
    assert (ids[0] == ids[2], ids[0] != ids[1]) == (True, True)
    assert all(name.isalnum() and len(name) == 20 for name in ids)


def test_cc12m_as_google_publishes_it(table, tmp_path):
    (tmp_path / "cc12m.tsv").write_bytes(b'http://a.org/1.jpg\tthe "best" <PERSON>\r\nhttp://b.org/2.jpg\tcaf\xe9\n')
    made = table("url_list", table=str(tmp_path / "cc12m.tsv"), header=["url", "caption"])
    assert [(row["url"], row["captions"], row["note"]) for row in made.rows] == [
        ("http://a.org/1.jpg", ['the "best" <PERSON>'], None),
        ("http://b.org/2.jpg", [], "caption is not UTF-8"),
    ]


def test_rows_that_name_no_image_stay_with_their_fault(table, lines):
    good = {"url": "http://x/1", "caption": "c", "id": "k"}
    bad = [
        good | {"url": None},
        "{cut\n",
        good | {"url": 7},
        good | {"id": None},
        good | {"id": "x" * 501},
        good | {"url": "\ud800"},
    ]
    made = table("url_list", table=lines(good, *bad), columns={"id": "id"})
    faults = ["no url", "not JSON", "no url", "no id", "id too long", "no url"]
    assert [row["fault"] for row in made.rows] == [None, *(f"t.jsonl:{line}: {fault}" for line, fault in enumerate(faults, 2))]
    assert made.info["bad"] == {"id too long": 1, "no id": 1, "no url": 3, "not JSON": 1}


def test_what_cannot_be_used_of_a_row_is_noted(table, lines):
    row = {"url": "http://x/1", "caption": ["fine", 7, "\udcff"], "sha": "short", "score": "high"}
    made = table("url_list", table=lines(row), columns={"sha256": "sha", "scores": {"nsfw": "score"}})
    assert made.rows[0]["captions"] == ["fine"]
    assert [made.rows[0][key] for key in ("sha256", "scores", "fault")] == [None, [], None]
    for words in ("caption is not text", "caption is not UTF-8", "score nsfw is no number", "sha256"):
        assert words in made.rows[0]["note"]


def test_numbers_are_ids_also_where_a_gap_made_them_floats(table, lines):
    file = lines(*({"id": name, "url": "http://x"} for name in (3, 4.0, 4.5, True)))
    made = table("url_list", table=file, columns={"id": "id", "captions": []})
    assert [row["id"] for row in made.rows] == ["3", "4", None, None]


def test_fraction_keeps_the_same_rows_in_every_run_and_in_every_larger_part(table, lines, tmp_path):
    file = lines(*({"url": f"http://x/{number}", "caption": "c"} for number in range(3000)), "{bad\n" * 100)
    made = {part: table("url_list", table=file, fraction=part, out=tmp_path / f"{part}.json") for part in (0.1, 0.5, 1.0)}
    urls = {part: [row["url"] or row["fault"] for row in one.rows] for part, one in made.items()}
    assert [len(urls[part]) / 3100 for part in urls] == pytest.approx([0.1, 0.5, 1.0], abs=0.03)
    assert set(urls[0.1]) < set(urls[0.5]) < set(urls[1.0])
    assert urls[0.1] == [url for url in urls[1.0] if url in set(urls[0.1])]
    assert {part: one.info["read"] for part, one in made.items()} == {0.1: 3100, 0.5: 3100, 1.0: 3100}
    again = table("url_list", table=file, fraction=0.1, out=tmp_path / "again" / "0.1.json")
    assert again.out.with_suffix(".parquet").read_bytes() == made[0.1].out.with_suffix(".parquet").read_bytes()
    assert again.out.read_text() == made[0.1].out.read_text()


def test_the_artifact_is_the_contract(table, lines):
    made = table("url_list", table=lines({"url": "http://x/1", "caption": "c"}))
    assert read_sidecar(made.out, "table").rows("table") == 1
    assert faults(made.out.parent) == []
    assert sorted(path.name for path in made.out.parent.iterdir()) == ["mine.json", "mine.parquet"]


def test_several_files_are_read_in_the_order_of_their_names(table, tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02d}.csv").write_text(f"url,caption\nhttp://x/{number},c\n")
    made = table("url_list", table=str(tmp_path / "{00..11}.csv"))
    assert [row["url"] for row in made.rows] == [f"http://x/{number}" for number in range(12)]
    assert len(made.info["files"]) == 12


# Archives.


def test_rows_of_archives_are_sorted_by_the_name_of_the_image(table, lines):
    paths = ["./001/b.jpg", "000/d.png", "c", "9/a.webp"]
    file = lines(*({"img": path, "prompt": path} for path in paths))
    made = table("archives", table=file, columns={"id": "img", "captions": ["prompt"]})
    assert [(row["id"], row["captions"]) for row in made.rows] == [
        ("a", [paths[3]]),
        ("b", [paths[0]]),
        ("c", ["c"]),
        ("d", [paths[1]]),
    ]


def test_of_an_id_the_first_row_stays_and_the_rest_is_counted(table, lines):
    rows = [{"img": f"{number % 700}.jpg", "caption": f"{number}"} for number in range(2000)]
    made = table("archives", table=lines(*rows, {"img": None, "caption": "x"}, "{\n"), columns={"id": "img"})
    assert [row["id"] for row in made.rows] == sorted({str(number % 700) for number in range(2000)})
    assert all(row["captions"] == [row["id"]] for row in made.rows)
    assert (made.info["read"], made.info["bad"], made.info["duplicates"]) == (2002, {"no id": 1, "not JSON": 1}, 1300)


def test_the_captions_of_sa1b(table, tmp_path, make):
    texts = [(f"sa_{number}.txt", f"an image, {number}".encode()) for number in (3, 20, 1)]
    (tmp_path / "SA1B_caption.tar.gz").write_bytes(make.tar(texts, "w:gz"))
    made = table("archives", table=str(tmp_path / "SA1B_caption.tar.gz"))
    assert [(row["id"], row["captions"]) for row in made.rows] == [
        ("sa_1", ["an image, 1"]), ("sa_20", ["an image, 20"]), ("sa_3", ["an image, 3"]),
    ]  # fmt: skip


def test_the_annotations_of_journeydb_from_the_hub(table, make, hub, tmp_path):
    rows = [
        {"img_path": f"./00{number}/{uuid.UUID(int=number)}.jpg", "prompt": f"p {number}", "Task2": {}} for number in range(3)
    ]
    data = make.tar([("train_anno_realease_repath.jsonl", "\n".join(map(json.dumps, rows)).encode())], "w:gz")
    start = hub(**{"data/train/train_anno_realease_repath.jsonl.tgz": data})
    reference = f"{start}/data/train/train_anno_realease_repath.jsonl.tgz"
    made = table("archives", table=reference, columns={"id": "img_path", "captions": ["prompt"]})
    assert [(row["id"], row["captions"]) for row in made.rows] == [(str(uuid.UUID(int=n)), [f"p {n}"]) for n in range(3)]
    assert made.info["files"] == {reference: COMMIT}
    assert [path for path in (tmp_path / "downloads").rglob("*.tgz")] == []


def test_a_fetched_table_is_kept_if_the_config_says_so(table, lines, site, tmp_path):
    table("url_list", table=site.add("/t.csv", b"url,caption\nhttp://x/1,c\n"), fetching={"keep": True})
    assert [path.name for path in (tmp_path / "downloads").rglob("*.csv")] == ["t.csv"]


def test_the_metadata_of_diffusiondb(table, tmp_path):
    names = [f"{uuid.UUID(int=number)}.png" for number in range(3)]
    scores = {"image_nsfw": [0.5, 0.25, 2.0], "prompt_nsfw": [0.0, 0.1, None]}
    values = {"image_name": names, "prompt": ["a", "b", "c"], "seed": [1, 2, 3]} | scores
    pq.write_table(pa.table(values), tmp_path / "metadata-large.parquet")
    columns = {"id": "image_name", "captions": ["prompt"], "scores": {"nsfw": "image_nsfw", "prompt_nsfw": "prompt_nsfw"}}
    made = table("archives", table=str(tmp_path / "metadata-large.parquet"), columns=columns)
    assert [row["id"] for row in made.rows] == [name[:-4] for name in names]
    assert [dict(row["scores"]).get("nsfw") for row in made.rows] == [0.5, 0.25, 2.0]
    assert "prompt_nsfw" not in dict(made.rows[2]["scores"])


def test_every_row_is_found_again_and_no_other(table, lines):
    ids = [f"{number * 37 % 5000}" for number in range(2 * GROUP_ROWS + 5)]
    made = table("archives", table=lines(*({"id": name, "caption": f"of {name}"} for name in ids)), columns={"id": "id"})
    reader = TableReader(made.out.with_suffix(".parquet"))
    assert len(reader) == len(ids)
    assert all(reader.find(name)["captions"] == [f"of {name}"] for name in ids)
    assert [reader.find(name) for name in ("", "/", "00", "50000", "~", "ü")] == [None] * 6
    assert [row["id"] for row in reader.between(0, len(ids))] == sorted(ids)
    assert [row["id"] for row in reader.between(995, 1010)] == sorted(ids)[995:1010]
    assert list(reader.between(7, 7)) == []


# Mistakes.


def test_a_table_of_archives_without_a_usable_row_is_a_users_mistake(table, lines):
    with pytest.raises(UserError, match=r"none of 2 rows names an image \(no id 2\)"):
        table("archives", table=lines({"id": None, "caption": "c"}, {"id": "", "caption": "c"}), columns={"id": "id"})


@pytest.mark.parametrize(
    ("rows", "keys", "words"),
    [
        ([{"url": None}] * 2, {}, r"none of 2 rows names an image \(no url 2\)"),
        (["\n"], {}, "holds no rows"),
        ([{"url": "http://x"}], {"fraction": 1e-9}, "`fraction` chooses none of 1 rows"),
        ([{"link": "http://x"}], {}, r"no column url \(there are: link\)"),
    ],
)
def test_a_table_of_no_images_is_a_users_mistake(table, lines, rows, keys, words):
    with pytest.raises(UserError, match=words) as caught:
        table("url_list", table=lines(*rows), columns={"captions": []}, **keys)
    assert "\n" not in str(caught.value)


def test_archives_need_the_column_with_the_names(table, lines):
    with pytest.raises(UserError, match=r"^sources\.mine\.columns\.id: name the column"):
        table("archives", table=lines({"caption": "a"}))


def test_a_table_that_is_not_there_names_the_key(table, site):
    with pytest.raises(UserError, match=r"^sources\.mine\.table: 'none\.csv' matches no file"):
        table("url_list", table="none.csv")
    with pytest.raises(UserError, match=r"^sources\.mine\.table: .*was not received \(http_404"):
        table("url_list", table=site.url("/none.csv"))


def test_a_table_that_breaks_off_leaves_nothing(table, tmp_path):
    data = gzip.compress("".join(f"http://x/{number}\n" for number in range(10_000)).encode())
    (tmp_path / "t.csv.gz").write_bytes(data[:-100])
    with pytest.raises(UserError, match=r"^sources\.mine\.table: .*t\.csv\.gz: ends before its gzip end mark"):
        table("url_list", table=str(tmp_path / "t.csv.gz"), header=["url"], columns={"captions": []})
    assert list((tmp_path / "tables").iterdir()) == []
