import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from tests.web import Page

ONCE = {"attempts": 1}


@pytest.fixture
def listed(table, collect, tmp_path, site):
    """Rows as JSON lines to a table and a shard of it: listed([row, …], shards=2, shard=1, …)."""

    def go(rows, columns=None, out=None, fraction=1.0, **keys):
        file = tmp_path / "list.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        made = {"table": str(file), "columns": columns or {}, "fraction": fraction}
        where = {"out": out} if out else {}
        return collect("url_list", sidecar=table("url_list", **made).out, fetching=ONCE, **where, **made, **keys)

    return go


@pytest.fixture
def photos(site, make):
    """Rows of `count` photos on the server."""

    def go(count):
        return [{"url": site.add(f"/{number}.jpg", make.jpeg(number)), "caption": f"photo {number}"} for number in range(count)]

    return go


def test_cc12m_as_google_publishes_it(table, collect, site, make, tmp_path):
    urls = [site.add(f"/{number}.jpg", make.jpeg(number)) for number in range(4)] + [site.url("/gone.jpg")]
    (tmp_path / "cc12m.tsv").write_text("".join(f"{url}\ta photo of <PERSON>, {place}\n" for place, url in enumerate(urls)))
    keys = {"table": str(tmp_path / "cc12m.tsv"), "header": ["url", "caption"]}
    found = collect("url_list", sidecar=table("url_list", **keys).out, fetching=ONCE, **keys)
    assert [(row["url"], row["reason"]) for row in found.rows] == [(url, None) for url in urls[:4]] + [(urls[4], "http_404")]
    assert [value["caption"] for value in found.json.values()] == [f"a photo of <PERSON>, {place}" for place in range(4)]
    assert all(row["origin"] == row["url"] for row in found.rows)


def test_pd12m_as_it_is_on_the_hub(table, collect, site, hub, make):
    """Parquet with ids, hashes and a licence, read from a hub."""
    images = [make.jpeg(number) for number in range(3)]
    values = {
        "id": [f"uuid-{number}" for number in range(3)],
        "url": [site.add(f"/{number}.jpg", image) for number, image in enumerate(images)],
        "caption": ["one", "two", "three"],
        "license": ["https://creativecommons.org/publicdomain/zero/1.0/"] * 3,
        "hash": [hashlib.sha256(image).hexdigest() for image in (images[0], images[0], images[2])],
        "aesthetic": [5.5, 6.0, None],
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(values), sink)
    start = hub(**{"metadata/pd12m.000.parquet": sink.getvalue().to_pybytes()})
    columns = {"id": "id", "license": "license", "sha256": "hash", "scores": {"aesthetic": "aesthetic"}}
    keys = {"table": f"{start}/metadata/*.parquet", "columns": columns}
    found = collect("url_list", sidecar=table("url_list", **keys).out, fetching=ONCE, **keys)
    assert [(row["key"], row["reason"]) for row in found.rows] == [("uuid-0", None), ("uuid-1", "wrong_hash"), ("uuid-2", None)]
    assert found.row["uuid-0"]["license"] == values["license"][0]
    assert [dict(row["scores"] or []) for row in found.rows] == [{"aesthetic": 5.5}, {"aesthetic": 6.0}, {}]
    assert found.json["uuid-2"]["caption"] == "three"


def test_every_row_has_its_outcome(listed, photos, site, make, capsys):
    site.pages["/page"] = Page(b"<html>no photo", headers={"Content-Type": "image/jpeg"})
    site.pages["/moved"] = Page(status=302, headers={"Location": "/0.jpg"})
    site.pages["/noai"] = Page(make.jpeg(7), headers={"X-Robots-Tag": "noai, nosnippet"})
    site.pages["/noindex"] = Page(make.jpeg(8), headers={"X-Robots-Tag": "noindex"})
    site.pages["/asks"] = Page(status=403)
    site.pages["/small"] = Page(make.encoded(make.photo(1, 12, 12)))
    site.pages["/cut"] = Page(make.jpeg(9)[:-300])
    names = ("page", "moved", "noai", "noindex", "asks", "small", "cut", "void", "none")
    site.pages["/void"] = Page(b"")
    rows = photos(2) + [{"id": name, "url": site.url(f"/{name}"), "caption": name} for name in names]
    rows = [{"id": f"p{place}"} | row for place, row in enumerate(rows)]
    bad = [
        {"id": "ftp", "url": "ftp://x.org/a.jpg"},
        {"id": "near", "url": "http://10.0.0.1/a.jpg"},
        {"id": "p0", "url": "http://x"},
    ]
    found = listed([*rows, *bad, {"id": "blank", "url": None}, {"url": "http://x", "caption": "c"}], {"id": "id"})
    assert {row["key"]: row["reason"] for row in found.rows[:-3]} == {
        "p0": None, "p1": None, "page": "not_an_image", "moved": None, "noai": "opted_out", "noindex": None, "asks": "http_403",
        "small": "too_small", "cut": "truncated", "void": "empty_file", "none": "http_404", "ftp": "bad_url",
        "near": "private_host",
    }  # fmt: skip
    assert [(row["key"], row["reason"], row["detail"]) for row in found.rows[-3:]] == [
        ("p0", "duplicate_key", "a row before has the same id, or without ids the same URL"),
        ("blank", "bad_row", "list.jsonl:15: no url"),
        ("row_15", "bad_row", "list.jsonl:16: no id"),
    ]
    assert found.row["moved"]["detail"] == f"redirected to {site.url('/0.jpg')}"
    assert "noindex" in found.row["noindex"]["detail"]
    assert "noai, nosnippet" in found.row["noai"]["detail"]
    assert all(line.isprintable() for line in capsys.readouterr().err.splitlines())  # no cursor moves in a log


def test_hosts_are_not_asked_for_their_wishes_if_the_config_says_so(listed, site, make):
    url = site.add("/noai", make.jpeg(), headers={"X-Robots-Tag": "noai"})
    found = listed([{"url": url, "caption": "c"}], opt_out=[])
    assert [row["reason"] for row in found.rows] == [None]


def test_images_with_a_high_nsfw_score_are_not_even_fetched(listed, photos, site):
    rows = [row | {"punsafe": score} for row, score in zip(photos(3), (0.1, 0.9, None), strict=True)]
    found = listed(rows, {"scores": {"nsfw": "punsafe"}}, max_nsfw=0.2)
    assert [row["reason"] for row in found.rows] == [None, "nsfw", None]
    assert site.hits["/1.jpg"] == 0


def test_a_url_that_is_there_twice_is_fetched_once(listed, photos, site):
    rows = photos(2)
    found = listed([*rows, rows[0] | {"caption": "again"}])
    assert [row["reason"] for row in found.rows] == [None, None, "duplicate_key"]
    assert site.hits["/0.jpg"] == 1
    assert [value["caption"] for value in found.json.values()] == ["photo 0", "photo 1"]


def test_shards_together_hold_every_row_once_and_in_order(listed, photos, tmp_path):
    rows = photos(7)
    parts = [listed(rows, shards=3, shard=shard, out=tmp_path / "out" / f"{shard}.json") for shard in range(3)]
    assert [[row["url"] for row in part.rows] for part in parts] == [
        [row["url"] for row in rows[first:end]] for first, end in ((0, 2), (2, 4), (4, 7))
    ]


def test_the_same_list_gives_the_same_bytes(listed, photos, tmp_path):
    rows = [*photos(3), {"url": "ftp://x", "caption": "c"}]
    for name in ("one", "two"):
        listed(rows, out=tmp_path / name / "0.json")
    for suffix in ("json", "tar", "parquet"):
        assert (tmp_path / "one" / f"0.{suffix}").read_bytes() == (tmp_path / "two" / f"0.{suffix}").read_bytes()


def test_all_captions_of_a_row_are_kept_and_notes_reach_the_ledger(listed, photos):
    rows = [photos(1)[0] | {"caption": ["one", 7, "two"]}]
    found = listed(rows)
    (value,) = found.json.values()
    assert (value["caption"], value["captions"]) == ("one", ["one", "two"])
    assert found.rows[0]["detail"] == "caption is not text"


def test_fraction_fetches_that_part_alone(listed, photos, site):
    found = listed(photos(40), fraction=0.25)
    assert 0 < len(found.rows) < 25
    assert site.hits.total() == len(found.rows)


def test_too_few_images_stop_the_shard_and_a_rerun_asks_for_none_again(listed, photos, site, tmp_path):
    rows = [*photos(3), *({"url": site.url(f"/none{number}"), "caption": "c"} for number in range(3))]
    with pytest.raises(UserError, match=r"^sources\.mine: 3 of 6 wanted .*http_404 3"):
        listed(rows, bad=0.4)
    assert list((tmp_path / "downloads").glob("*.journal"))
    before = site.hits.total()
    found = listed(rows, bad=0.5)
    assert (len(found.json), site.hits.total() - before) == (3, 0)
    assert list((tmp_path / "downloads").glob("*.journal")) == []


def test_a_list_without_its_table_says_how_to_make_it(collect):
    with pytest.raises(UserError, match=r"^--table: sources\.mine has a table; make it with `python -m pipeline table`"):
        collect("url_list", table="list.csv")
