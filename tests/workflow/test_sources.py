"""Sources that are elsewhere, through Snakemake: a list of URLs, archives, tars of the hub and COCO's zips, all from
servers on loopback, from their tables to a manifest. The run is killed while it fetches, and finished by the same command."""

import hashlib
import json
import re
import time
from collections import Counter
from types import SimpleNamespace

import psutil
import pyarrow.parquet as pq
import pytest

from tests.hub import HubSite, Repository
from tests.pictures import encoded, jpeg, photo, tar_bytes, zip_bytes
from tests.web import HOST, Page, Site

pytestmark = pytest.mark.timeout(900)  # on a machine that has much else to do

TARGET = "results/manifests/low_masked.json"
LISTED = ("results/data/listed/00000.json", "results/data/listed/00001.json")

# What a row of the list comes to: the page at its URL, if any is to be asked for, and its columns.
FAULTS = {
    "http_404": (Page(status=404), {}),
    "not_an_image": (Page(b"<html>it has moved"), {}),
    "opted_out": (Page(jpeg(100), headers={"X-Robots-Tag": "noai"}), {}),
    "empty_file": (Page(), {}),
    "truncated": (Page(jpeg(101)[:-200]), {}),
    "duplicate_key": (None, {"id": "http_404"}),
    "bad_url": (None, {"url": "ftp://host/a.jpg"}),
    "too_small": (Page(jpeg(102, width=30)), {}),
    "wrong_hash": (Page(jpeg(103)), {"sha256": "0" * 64}),
    "redirect": (Page(status=302, headers={"Location": "?"}), {}),
    "private_host": (None, {"url": "http://127.0.0.2/a.jpg"}),
    "nsfw": (None, {"punsafe": "0.9"}),
    "bad_row": (None, {"url": ""}),
}
GOOD = [f"good_{number}" for number in range(15)]
HELD = ("/good_6.jpg", "/good_14.jpg")  # the last of each shard: while they are waited for, all others are there
COLUMNS = ("id", "url", "caption", "license", "sha256", "punsafe")

# What becomes of all that is collected: left out by reason, and trained on.
BAD = {"listed": dict.fromkeys(FAULTS, 1), "packed": {"unsafe_member": 1, "not_an_image": 1}, "tars": {"no_image": 1}}
LEFT_OUT = {
    "listed": {"no_caption": 1},
    "packed": {"near_duplicate": 1, "duplicate": 1, "in_evaluation_set": 1, "caption_in_evaluation_set": 1, "no_caption": 1},
    "tars": {"near_evaluation_set": 1},
}
TRAINED = {"listed": 14, "packed": 3, "tars": 4}
LICENCES = {"listed": {"CC-BY-4.0": 14}, "packed": {"CC0-1.0": 3}, "tars": {"unknown": 4}}


def rows_of_the_list():
    """Columns, page and class of each row; the class of a good one is None."""
    good = []
    for number, name in enumerate(GOOD):
        body, caption = jpeg(number), "" if number == 3 else f"photo {number}"
        good.append(({"id": name, "caption": caption, "sha256": hashlib.sha256(body).hexdigest()}, Page(body), None))
    bad = [({"id": reason, **columns}, page, reason) for reason, (page, columns) in FAULTS.items()]
    return bad[:7] + good[:7] + bad[7:] + good[7:]


def publish_list(site):
    """Puts the list and its images on the site; returns the class of each row."""
    lines, rows = ["\t".join(COLUMNS)], rows_of_the_list()
    for columns, page, reason in rows:
        path = f"/{reason or columns['id']}.jpg"
        columns = {"url": site.url(path), "license": "CC-BY-4.0", **columns}
        lines.append("\t".join(columns.get(name, "") for name in COLUMNS))
        if page:
            site.pages[path] = page
    site.add("/list.tsv", "\n".join(lines).encode())
    return [reason for _, _, reason in rows]


def publish_archives(site):
    """Two zips and a table of captions for them."""
    first = {f"in/plain_{number}.jpg": jpeg(200 + number) for number in range(2)}
    first |= {"in/near.jpg": encoded(photo(4), quality=70), "in/same.jpg": jpeg(5), "../outside.jpg": jpeg(203)}
    second = {
        "plain_2.jpg": jpeg(202),
        "leak.jpg": jpeg(300),
        "told.jpg": jpeg(204),
        "silent.jpg": jpeg(205),
        "text.jpg": b"text",
    }
    captions = {name: f"the one called {name}" for name in ("plain_0", "plain_1", "plain_2", "near", "same", "leak", "text")}
    table = "name,caption\n" + "".join(f"{name}.jpg,{text}\n" for name, text in (captions | {"told": "evaluated 1"}).items())
    site.add("/captions.csv", table.encode())
    for number, members in enumerate((first, second)):
        site.add(f"/batch-{number}.zip", zip_bytes(members), ranges=True, headers={"ETag": f'"{number}"'})


def publish_evaluation(site):
    names = [f"{number}.jpg" for number in range(3)]
    images = [{"id": number + 1, "file_name": name} for number, name in enumerate(names)]
    notes = [{"id": image["id"], "image_id": image["id"], "caption": f"evaluated {image['id']}"} for image in images]
    site.add("/val.zip", zip_bytes({f"val/{name}": jpeg(300 + number) for number, name in enumerate(names)}))
    site.add("/notes.zip", zip_bytes({"captions.json": json.dumps({"images": images, "annotations": notes}).encode()}))


def tars():
    """Files of the hub's repository."""
    first = [
        (f"a{number}.{kind}", body) for number in range(3) for kind, body in (("jpg", jpeg(400 + number)), ("txt", b"a photo"))
    ]
    second = [("b0.txt", b"no image"), ("b1.jpg", encoded(photo(301), quality=90)), ("b1.txt", b"a leak")]
    second += [("b2.jpg", jpeg(403)), ("b2.txt", b"another photo")]
    return {"train/0.tar": tar_bytes(first), "train/1.tar": tar_bytes(second)}


def overlay(site):
    """Sources and the one stage that trains on them."""
    columns = {"id": "id", "license": "license", "sha256": "sha256", "scores": {"nsfw": "punsafe"}}
    sources = {
        "listed": {"kind": "url_list", "table": site.url("/list.tsv"), "columns": columns, "shards": 2, "max_nsfw": 0.2},
        "packed": {"kind": "archives", "files": site.url("/batch-{0..1}.zip"), "table": site.url("/captions.csv")},
        "tars": {"kind": "webdataset", "path": "hf://datasets/owner/name@main/train/*.tar", "min_yield": 0.5},
        "coco": {"images": site.url("/val.zip"), "annotations": site.url("/notes.zip"), "attributes": None},
    }
    sources["packed"] |= {"columns": {"id": "name"}, "license": "CC0-1.0", "min_yield": 0.5}
    for source in sources.values():
        source |= {"min_side": 32, "store_side": 64}
    return {
        "sources": sources,
        "filters": {"near_duplicates": 2},
        "validation": {"share": 0.0},
        "stages": {"low_masked": {"sources": list(TRAINED)}},
        "schedule": ["low_masked"],
        "runtime": {"downloads": {"allow_hosts": [HOST], "per_host": 1, "timeout_seconds": 200}},
    }


@pytest.fixture(scope="module")
def remote(make_project, tmp_path_factory):
    """A project that has made a manifest of all sources; the first run was killed, with two images of the list still to
    come. Do not change it: `copy` gives a copy."""
    hub = HubSite({"datasets/owner/name": Repository(tars())})
    with Site() as site, hub, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", hub.url())
        environment.delenv("HF_TOKEN", raising=False)
        classes = publish_list(site)
        publish_archives(site)
        publish_evaluation(site)
        project = make_project(tmp_path_factory.mktemp("remote") / "project")
        overlays = ("tests/workflow/smoke.yaml", project.overlay("remote.yaml", json.dumps(overlay(site))))
        killed_while_fetching(project, overlays, site)
        for arguments in (["--unlock"], ["--rerun-incomplete", "--", *LISTED], ["--", TARGET]):
            done = project.snakemake(*arguments, overlays=overlays)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        yield SimpleNamespace(project=project, site=site, hub=hub, overlays=overlays, classes=classes)


def killed_while_fetching(project, overlays, site):
    """Start to collect the list, and kill Snakemake and its jobs while the last image of each shard is waited for."""
    pages = {path: site.pages[path] for path in HELD}
    site.pages |= {path: Page(wait=200) for path in HELD}
    driver = project.start("--rerun-incomplete", "--", *LISTED, overlays=overlays)
    while not all(site.hits[path] for path in HELD):
        assert driver.poll() is None, "over before it was killed"
        time.sleep(0.02)
    jobs = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    for job in jobs:
        job.kill()
    assert driver.wait(60) < 0 and not psutil.wait_procs(jobs, 60)[1]
    site.pages |= pages


def manifest_of(project):
    return json.loads((project.folder / TARGET).read_text())


def ledger_of(project, source):
    """Rows of all shards in their order."""
    files = sorted((project.folder / "results/data" / source).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def jobs_of(remote, *more):
    """Rule and source of the jobs that a run would start."""
    done = remote.project.snakemake("--dry-run", "--", TARGET, overlays=(*remote.overlays, *more))
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^rule (\w+):\n(?:    .*\n)*?(?:    wildcards: (?:source=(\w+))?.*\n)", done.stdout, re.M)
    assert len(found) == len(re.findall(r"^rule \w+:", done.stdout, re.M))
    return Counter(found)


def test_no_image_is_fetched_twice_though_the_run_was_killed_on_the_way(remote):
    asked = {f"/{reason}.jpg": 1 for reason, (page, _) in FAULTS.items() if page} | {f"/{name}.jpg": 1 for name in GOOD}
    files = dict.fromkeys(("/list.tsv", "/captions.csv", "/batch-0.zip", "/batch-1.zip", "/val.zip", "/notes.zip"), 1)
    assert remote.site.hits == asked | dict.fromkeys(HELD, 2) | files


def test_every_row_of_the_list_has_its_line_and_class_in_the_ledger(remote):
    assert [row["reason"] for row in ledger_of(remote.project, "listed")] == remote.classes


def test_the_counts_add_up_from_the_first_url_to_the_manifest(remote):
    manifest = manifest_of(remote.project)
    table = json.loads((remote.project.folder / "results/tables/listed.json").read_text())["info"]
    assert table["read"] == table["chosen"] == len(remote.classes) == manifest["counts"]["listed"]["seen"]
    for source, trained in TRAINED.items():
        counts, ledger = manifest["counts"][source], ledger_of(remote.project, source)
        assert counts["seen"] == len(ledger) and counts["bad"] == BAD[source]
        assert counts["collected"] == len(ledger) - sum(BAD[source].values())
        assert counts["left_out"] == LEFT_OUT[source] and counts["trained"] == trained
        assert counts["collected"] == trained + sum(LEFT_OUT[source].values())
        assert counts["licences"] == LICENCES[source]
    assert manifest["samples"] == sum(TRAINED.values()) and len(ledger_of(remote.project, "coco")) == 3


def test_a_second_run_asks_for_nothing_and_does_nothing(remote):
    asked = len(remote.site.requests), len(remote.hub.requests)
    done = remote.project.snakemake("--", TARGET, overlays=remote.overlays)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr
    assert (len(remote.site.requests), len(remote.hub.requests)) == asked


BELOW = ("collect", "caption", "encode")


@pytest.mark.parametrize(
    ("source", "keys", "expected"),
    [
        ("listed", {"columns": {"license": None}}, {"table": 1, **dict.fromkeys(BELOW, 2)}),
        ("listed", {"opt_out": []}, dict.fromkeys(BELOW, 2)),
        ("packed", {"max_nsfw": 0.5}, dict.fromkeys(BELOW, 1)),
        ("tars", {"caption": "fill"}, {"caption": 1, "encode": 1}),
        ("coco", {"store_side": 48}, {"collect": 1, "caption": 1}),
    ],
)
def test_a_key_of_one_source_reruns_that_source_alone(remote, tmp_path, source, keys, expected):
    (tmp_path / "changed.yaml").write_text(json.dumps({"sources": {source: keys}}))
    jobs = {(rule, source): count for rule, count in expected.items()} | {("manifest", ""): 1}
    assert jobs_of(remote, tmp_path / "changed.yaml") == jobs


def test_how_files_are_fetched_reruns_nothing(remote, tmp_path):
    changed = {"sources": {"packed": {"min_yield": 0.9}}, "runtime": {"downloads": {"per_host": 4, "keep": True}}}
    (tmp_path / "changed.yaml").write_text(json.dumps(changed))
    assert not jobs_of(remote, tmp_path / "changed.yaml")


def test_too_few_images_stop_the_run_in_one_line_and_leave_other_sources_alone(remote, tmp_path, monkeypatch):
    copy = remote.project.copy(tmp_path / "copy")
    pages = {path: Page(status=410) if path.startswith("/good") else page for path, page in remote.site.pages.items()}
    monkeypatch.setattr(remote.site, "pages", pages)
    before, asked = files_of_others(copy), remote.site.hits.copy()
    changed = copy.overlay("changed.yaml", json.dumps({"sources": {"listed": {"opt_out": []}}}))
    done = copy.snakemake("--", TARGET, overlays=(*remote.overlays, changed))
    assert done.returncode != 0
    said = {line for line in (done.stdout + done.stderr).splitlines() if "error:" in line}
    form = r"error: sources\.listed: \d of \d+ wanted samples of shard [01] were received.* http_410 [78], .*min_yield"
    assert said and all(re.fullmatch(f"{form}.*", line) for line in said), done.stdout + done.stderr
    assert files_of_others(copy) == before
    assert {path for path in remote.site.hits - asked if not path.endswith(".jpg")} == set()


def files_of_others(project):
    """Bytes and times of all results but those of the list."""
    results = project.folder / "results"
    found = [file for name in ("data", "tables", "captions", "encoded", "manifests") for file in (results / name).rglob("*")]
    mine = results / "data/listed"
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in found if file.is_file() and mine not in file.parents}
