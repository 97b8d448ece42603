import hashlib
import json
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.sources import archives
from tests.hub import COMMIT
from tests.pictures import zip_bytes
from tests.web import Page

ONCE = {"attempts": 1}


@pytest.fixture
def both(table, collect):
    """A source's table and a shard of it, as the rules make them."""

    def go(out=None, sidecar=None, **keys):
        runs = {key: keys.pop(key) for key in ("shard", "bad", "fetching") if key in keys}
        made = {key: keys[key] for key in ("table", "columns", "header", "files", "links") if key in keys}
        sidecar = table("archives", **made).out if "table" in keys else None
        return collect("archives", sidecar=sidecar, **({"out": out} if out else {}), **({"fetching": ONCE} | runs), **keys)

    return go


@pytest.fixture
def local(tmp_path):
    """Writes archives: local(name=bytes) gives a pattern of them."""

    def go(**files):
        (tmp_path / "in").mkdir(exist_ok=True)
        for name, data in files.items():
            (tmp_path / "in" / name.replace("_", ".")).write_bytes(data)
        return str(tmp_path / "in" / "*")

    return go


@pytest.fixture
def captions(tmp_path):
    """A CSV of captions by id."""

    def go(**texts):
        path = tmp_path / "captions.csv"
        path.write_text("id,caption\n" + "".join(f"{name},{text}\n" for name, text in texts.items()))
        return {"table": str(path), "columns": {"id": "id"}}

    return go


def photos(make, *names):
    return [(name, make.jpeg(number)) for number, name in enumerate(names)]


# As they are published.


def test_sa1b_by_its_links(both, site, make, tmp_path):
    """Tars with a JSON of masks beside each image, and a tar of captions, one .txt an image."""
    names = [f"sa_{number}" for number in range(6)]
    for place in range(2):
        mine = names[3 * place : 3 * place + 3]
        images, masks = {name: make.jpeg(int(name[3:])) for name in mine}, dict.fromkeys(mine, b'{"annotations": []}')
        members = [(f"./{name}.{kind}", of[name]) for name in mine for kind, of in (("jpg", images), ("json", masks))]
        site.add(f"/sa_00000{place}.tar", make.tar(members))
    links = "".join(f"sa_00000{place}.tar\t{site.url(f'/sa_00000{place}.tar?sig=secret')}\n" for place in (1, 0))
    (tmp_path / "links.txt").write_text("file_name\tcdn_link\n" + links)
    texts = [(f"SA1B_caption/{name}.txt", f"The image shows {name}.".encode()) for name in reversed(names[:5])]
    keys = {"links": str(tmp_path / "links.txt"), "table": site.add("/SA1B_caption.tar.gz", make.tar(texts, "w:gz")), "shards": 2}
    parts = [both(shard=shard, out=tmp_path / "out" / f"{shard}.json", **keys) for shard in (0, 1)]
    assert [[row["key"] for row in part.rows] for part in parts] == [names[:3], names[3:]]
    assert [value["caption"] for value in parts[0].json.values()] == [f"The image shows {name}." for name in names[:3]]
    assert (parts[1].json["sa_5"]["caption"], parts[1].row["sa_5"]["detail"]) == (None, "no row of its id in the table")
    assert parts[0].row["sa_1"]["origin"] == "sa_000000.tar:sa_1.jpg"
    assert parts[0].files["sa_1.jpg"] == make.jpeg(1)
    assert [path for path in (tmp_path / "downloads").rglob("*.tar")] == []


def test_journeydb_from_the_hub(both, hub, make, tmp_path):
    """Tgz of folders, and a tgz of JSON lines that name each image with its folder."""
    names = [str(uuid.UUID(int=number * 2**90)) for number in range(4)]
    rows = [{"img_path": f"./00{place // 2}/{name}.jpg", "prompt": f"prompt {place}"} for place, name in enumerate(names)]
    lines = "\n".join(map(json.dumps, rows)).encode()
    annotations = "data/train/train_anno_realease_repath.jsonl.tgz"
    files = {annotations: make.tar([("train_anno_realease_repath.jsonl", lines)], "w:gz")}
    for place in range(2):
        members = [(f"00{place}/{name}.jpg", make.jpeg(n)) for n, name in enumerate(names) if n // 2 == place]
        files[f"data/train/imgs/00{place}.tgz"] = make.tar(members, "w:gz")
    start = hub(**files)
    keys = {
        "files": f"{start}/data/train/imgs/{{000..001}}.tgz",
        "table": f"{start}/{annotations}",
        "columns": {"id": "img_path", "captions": ["prompt"]},
    }
    found = both(**keys)
    assert {key: value["caption"] for key, value in found.json.items()} == {name: f"prompt {n}" for n, name in enumerate(names)}
    assert found.row[names[2]]["origin"] == f"001.tgz:001/{names[2]}.jpg"
    assert COMMIT not in found.row[names[2]]["origin"]


def test_diffusiondb_with_its_nsfw_scores(both, site, make, tmp_path):
    """Zips of part-NNNNNN with a JSON that is passed over, and one parquet for all."""
    names = [str(uuid.UUID(int=number)) for number in range(4)]
    png = make.encoded(make.photo(1), "PNG")
    for part in (1, 2):
        members = [(f"part-00000{part}/{name}.png", png) for name in names[2 * part - 2 : 2 * part]]
        site.add(f"/part-00000{part}.zip", zip_bytes([*members, (f"part-00000{part}/part-00000{part}.json", b"{}")]))
    table = {
        "image_name": [f"{name}.png" for name in names],
        "prompt": ["one", "two", "three", ""],
        "image_nsfw": [0.1, 0.3, 0.0, 0.0],
        "prompt_nsfw": [0.0, 0.0, 0.5, 0.0],
    }
    pq.write_table(pa.table(table), tmp_path / "metadata-large.parquet")
    scores = {"nsfw": "image_nsfw", "prompt_nsfw": "prompt_nsfw"}
    found = both(
        files=site.url("/part-{000001..000002}.zip"),
        table=str(tmp_path / "metadata-large.parquet"),
        columns={"id": "image_name", "captions": ["prompt"], "scores": scores},
        max_nsfw=0.2,
    )
    assert [row["reason"] for row in found.rows] == [None, "nsfw", "nsfw", None]
    assert [row["captioned"] for row in found.rows] == [True, True, True, False]
    assert dict(found.row[names[1]]["scores"]) == pytest.approx({"nsfw": 0.3, "prompt_nsfw": 0.0})


# Shards and shares.


def test_archives_are_dealt_out_in_turn_and_shards_together_hold_every_image_once(both, local, make, tmp_path):
    files = local(**{f"{name}_tar": make.tar(photos(make, f"{name}1.jpg", f"{name}2.jpg")) for name in "cabed"})
    parts = [both(files=files, shards=2, shard=shard, out=tmp_path / "out" / f"{shard}.json") for shard in (0, 1)]
    assert [[row["key"] for row in part.rows] for part in parts] == [
        ["a1", "a2", "c1", "c2", "e1", "e2"],
        ["b1", "b2", "d1", "d2"],
    ]
    assert len(list((tmp_path / "in").iterdir())) == 5  # what is the user's own stays


def test_fraction_takes_whole_archives_and_a_part_of_one(both, site, make, tmp_path):
    for number in range(4):
        site.add(f"/{number}.tar", make.tar(photos(make, *(f"{number}-{place}.jpg" for place in range(30)))))
    keys = {"files": site.url("/{0..3}.tar"), "bad": 0.0}
    parts = {part: both(fraction=part, out=tmp_path / f"{part}.json", **keys) for part in (0.1, 0.4, 1.0)}
    found = {part: set(one.json) for part, one in parts.items()}
    assert [len(found[part]) for part in found] == pytest.approx([12, 48, 120], abs=8)
    assert found[0.1] < found[0.4] < found[1.0]
    assert parts[0.4].sidecar["info"]["passed_over"] == {"files": 2, "samples": 60 - len(found[0.4])}
    assert sum(site.hits.values()) == 1 + 2 + 4


def test_the_same_archives_give_the_same_bytes(both, local, captions, make, tmp_path):
    files = local(a_tar=make.tar(photos(make, "x.jpg", "y.jpg")), b_zip=zip_bytes(photos(make, "z.jpg")))
    for name in ("one", "two"):
        both(files=files, out=tmp_path / name / "0.json", **captions(x="1", z="2"))
    for suffix in ("json", "tar", "parquet"):
        assert (tmp_path / "one" / f"0.{suffix}").read_bytes() == (tmp_path / "two" / f"0.{suffix}").read_bytes()


# What is broken.


@pytest.mark.parametrize("pack", ["tar", "zip"])
def test_unusable_members_are_rows_and_their_neighbours_survive(both, local, make, pack):
    odd = [("../up.jpg", make.jpeg(7)), ("void.jpg", b""), ("text.jpg", b"<html>"), ("cut.jpg", make.jpeg(8)[:-300])]
    members = [*photos(make, "a.jpg"), *odd, ("notes.txt", b"no image"), *photos(make, "b.jpg", "deep/a.jpg")]
    found = both(files=local(**{f"a_{pack}": make.tar(members) if pack == "tar" else zip_bytes(members)}))
    reasons = [None, "unsafe_member", "empty_file", "not_an_image", "truncated", None, "duplicate_key"]
    assert [row["reason"] for row in found.rows] == reasons
    assert list(found.json) == ["a", "b"]


def test_an_encrypted_image_of_a_zip_is_a_row(both, local, make):
    data = bytearray(zip_bytes(photos(make, "a.jpg", "b.jpg")))
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + flags] |= 1
    found = both(files=local(a_zip=bytes(data)))
    assert [(row["key"], row["reason"]) for row in found.rows] == [("a", "unreadable_file"), ("b", None)]


def test_an_image_of_other_bytes_than_the_table_says_is_not_used(both, local, make, tmp_path):
    hashes = [hashlib.sha256(make.jpeg(0)).hexdigest()] * 2
    (tmp_path / "t.csv").write_text("id,caption,hash\n" + "".join(f"{n},c,{h}\n" for n, h in zip("ab", hashes, strict=True)))
    columns = {"id": "id", "sha256": "hash"}
    found = both(files=local(a_tar=make.tar(photos(make, "a.jpg", "b.jpg"))), table=str(tmp_path / "t.csv"), columns=columns)
    assert [row["reason"] for row in found.rows] == [None, "wrong_hash"]


def test_a_cut_archive_gives_what_came_before_and_a_row(both, local, make):
    whole = make.tar(photos(make, "a.jpg", "b.jpg", "c.jpg"))
    files = local(a_tar=whole[: whole.index(make.jpeg(2)) + 50], b_tar=make.tar(photos(make, "d.jpg")), c_zip=b"PK\x03\x04cut")
    found = both(files=files)
    assert [(row["key"], row["reason"]) for row in found.rows if row["reason"] is None] == [("a", None), ("b", None), ("d", None)]
    assert {row["origin"]: row["reason"] for row in found.rows if row["reason"]} == {
        "a.tar": "truncated_archive", "c.zip": "damaged_archive",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"^sources\.mine\.files: 1 of 3 files .*truncated_archive 1.*below min_yield 0\.9"):
        both(files=files, bad=0.1)


def test_archives_that_are_not_received_are_rows_or_stop_the_shard(both, site, make, tmp_path):
    site.add("/1.tar", make.tar(photos(make, "a.jpg")))
    site.pages["/2.tar"] = Page(status=403)
    site.pages["/3.tar"] = Page(b"<html>log in", headers={"Content-Type": "text/html"})
    links = "".join(f"{number}.tar {site.url(f'/{number}.tar')}?sig=secret\n" for number in (1, 2, 3, 4))
    (tmp_path / "links.txt").write_text("# from the mail\n\n" + links)
    found = both(links=str(tmp_path / "links.txt"))
    reasons = {row["origin"]: row["reason"] for row in found.rows}
    assert reasons.pop("1.tar:a.jpg") is None
    assert (reasons["2.tar"], reasons["4.tar"], sorted(reasons)) == ("http_403", "http_404", ["2.tar", "3.tar", "4.tar"])
    assert "secret" not in json.dumps(found.rows)
    with pytest.raises(UserError, match=r"^sources\.mine\.links: 1 of 4 files .*http_403 1.*2\.tar") as caught:
        both(links=str(tmp_path / "links.txt"), bad=0.1)
    assert "secret" not in str(caught.value)


def test_an_archive_without_an_image_is_a_row(both, local, make):
    found = both(files=local(a_tar=make.tar([("a.txt", b"1")]), b_tar=make.tar(photos(make, "b.jpg"))))
    assert [(row["origin"], row["reason"]) for row in found.rows] == [("a.tar", "no_image"), ("b.tar:b.jpg", None)]


def test_what_was_fetched_is_kept_until_the_shard_is_written(both, site, make, tmp_path):
    site.add("/a.tar", make.tar([*photos(make, "a.jpg"), ("b.jpg", b"bad"), ("c.jpg", b"bad")]))
    with pytest.raises(UserError, match="1 of 3 wanted samples"):
        both(files=site.url("/a.tar"), bad=0.5)
    assert len(both(files=site.url("/a.tar"), bad=0.9).json) == 1
    assert site.hits["/a.tar"] == 1
    assert list((tmp_path / "downloads").rglob("*.tar")) == []
    both(files=site.url("/a.tar"), fetching=ONCE | {"keep": True})
    assert [path.name for path in (tmp_path / "downloads").rglob("*.tar")] == ["a.tar"]


# Mistakes.


def test_a_table_of_other_ids_is_a_users_mistake(both, local, captions, make):
    names = [f"{number}.jpg" for number in range(archives.ENOUGH)]
    files = local(a_tar=make.tar([(name, make.jpeg()) for name in names]))
    with pytest.raises(
        UserError, match=r"^sources\.mine\.columns\.id: no row for any of 100 images; the first image is 0, .* x:"
    ):
        both(files=files, **captions(x="other"))
    assert len(both(files=files, **{**captions(x="other", **{"7": "one of them"})}).json) == archives.ENOUGH


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.tar https://x/a.tar\nb.tar\n", r"links\.txt:2: must be the name of an archive"),
        ("a.tar https://x/a.tar\nb.tar ftp://x/b.tar\n", r"links\.txt:2: must be the name"),
        ("a.tar https://x/a.tar https://x/b.tar\n", r"links\.txt:1: must be the name"),
        ("a.tar https://x/1\n# c\na.tar https://x/2\n", r"links\.txt:3: a\.tar is there twice"),
        ("file_name cdn_link\n", "names no archive"),
        ("", "names no archive"),
        (None, "cannot be read"),
    ],
)
def test_a_list_of_links_that_is_none_names_its_line(both, tmp_path, text, words):
    if text is not None:
        (tmp_path / "links.txt").write_text(text)
    with pytest.raises(UserError, match=rf"^sources\.mine\.links: .*{words}"):
        both(links=str(tmp_path / "links.txt"))


def test_archives_that_are_not_there_name_the_key(both):
    with pytest.raises(UserError, match=r"^sources\.mine\.files: 'none/\*\.tar' matches no file"):
        both(files="none/*.tar")
