"""Whole files: what a pattern stands for, and downloads that come whole or not at all."""

import gzip
import hashlib
import multiprocessing
import signal
import socket
import subprocess
import sys
import time

import pytest

from pipeline.download import remote
from pipeline.errors import UserError
from pipeline.fingerprint import ROOT
from pipeline.ledger import Unusable
from tests.web import Page, Site, free_port

BODY = bytes(range(256)) * 2000
ETAG = {"ETag": '"one"'}


@pytest.fixture
def reason(files):
    """The class of a failed fetch."""

    def run(url, **keys):
        with pytest.raises(Unusable) as caught:
            files(**keys).fetch(url)
        return caught.value.reason

    return run


def left_over(tmp_path):
    return sorted(path.name for path in (tmp_path / "files").rglob("*") if path.is_file() and path.suffix != ".lock")


# What a pattern stands for


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/2.tar", "a/10.tar", "a/1.tar", "a/1.txt", "b/1.tar"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("data/a/1.tar", ["data/a/1.tar"]),
        ("data/a/*.tar", ["data/a/1.tar", "data/a/10.tar", "data/a/2.tar"]),
        ("data/{b,a}/1.tar", ["data/a/1.tar", "data/b/1.tar"]),
        ("data/**/1.*", ["data/a/1.tar", "data/a/1.txt", "data/b/1.tar"]),
        ("data/{a,*}/1.tar", ["data/a/1.tar", "data/b/1.tar"]),
        ("data/a/{1..3}.tar", ["data/a/1.tar", "data/a/2.tar", "data/a/3.tar"]),
        ("https://host/{008..010}.tar", [f"https://host/{number}.tar" for number in ("008", "009", "010")]),
        ("https://host/a.tar?key=1", ["https://host/a.tar?key=1"]),
        ("hf://datasets/owner/name@main/{0..1}.tar", [f"hf://datasets/owner/name@main/{n}.tar" for n in range(2)]),
    ],
)
def test_patterns(folder, files, pattern, found):
    assert files().expand("sources.x.path", pattern) == found


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("data/*.zip", "matches no file"),
        ("data/none.tar", "matches no file"),
        ("data/none{0..9}.tar", "matches no file"),
        ("data/{1..", "braces come in pairs"),
        ("data/{0..99999999}.tar", "more than 1,000,000 files"),
        ("https://host/*.tar", "cannot be asked which files match"),
        ("s3://bucket/a.tar", "must be a path, hf://… or https://…"),
        ("hf://datasets/owner/name/a.tar", "hf://datasets/OWNER/NAME@REVISION/PATH"),
        ("hf://datasets/owner/name@main/../*.tar", "hf://datasets/OWNER/NAME@REVISION/PATH"),
    ],
)
def test_no_patterns(folder, files, pattern, words):
    with pytest.raises(UserError, match=r"^sources.x.path: ") as caught:
        files().expand("sources.x.path", pattern)
    assert words in str(caught.value)


# Files of this machine


def test_a_local_file_is_used_where_it_is(folder, files):
    path = files().fetch("data/a/1.tar")
    assert str(path) == "data/a/1.tar"
    files().done_with(path)
    assert path.exists()


@pytest.mark.parametrize("name", ["data/none.tar", "data/a"])
def test_a_local_file_that_is_not_there(folder, reason, name):
    assert reason(name) == "missing_file"


def test_the_hash_of_a_local_file_is_checked(folder, files):
    assert files().fetch("data/a/1.tar", sha256=hashlib.sha256(b"a/1.tar").hexdigest())
    with pytest.raises(Unusable, match="wrong_hash"):
        files().fetch("data/a/1.tar", sha256="0" * 64)


# Downloads


def test_a_file_comes_once(tmp_path, site, files):
    url = site.add("/part/a.tar", BODY)
    path = files().fetch(url, sha256=hashlib.sha256(BODY).hexdigest())
    assert path.name == "a.tar" and path.read_bytes() == BODY and path.is_relative_to(tmp_path / "files")
    assert files().fetch(url) == path and site.hits.total() == 1
    assert left_over(tmp_path) == ["a.tar"]


def test_done_with_deletes_what_was_fetched_unless_it_is_kept(site, files):
    path = files().fetch(site.add("/a.tar", BODY))
    files(keep=True).done_with(path)
    assert path.exists()
    files().done_with(path)
    files().done_with(path)
    assert not path.exists()


def test_files_of_one_name_are_told_apart(site, files):
    urls = [site.add(path, path.encode()) for path in ("/one/a.tar", "/two/a.tar")] + [site.url("/one/a.tar?page=2")]
    paths = [files().fetch(url) for url in urls]
    assert len(set(paths)) == 3 and {path.name for path in paths} == {"a.tar"}
    assert paths[1].read_bytes() == b"/two/a.tar"


def test_a_given_name_survives_a_new_signature(site, files):
    site.add("/m1/xyz.txt", BODY)
    first = files().fetch(site.url("/m1/xyz.txt?sig=1"), name="sa_000020.tar")
    assert first.name == "sa_000020.tar" and files().fetch(site.url("/m1/xyz.txt?sig=2"), name="sa_000020.tar") == first
    assert files().fetch(site.url("/m1/xyz.txt?sig=1"), name="sa_000021.tar") != first


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "", ".hidden", "a b\0c.tar", "ü" * 300 + ".tar"])
def test_a_name_leads_out_of_no_folder(tmp_path, site, files, name):
    site.add("/x", BODY)
    path = files().fetch(site.url("/x"), name=name)
    assert path.resolve().is_relative_to(tmp_path / "files") and path.read_bytes() == BODY and not path.name.startswith(".")


def test_the_server_gives_no_name(site, files):
    path = files().fetch(site.add("/a.tar", BODY, headers={"Content-Disposition": 'attachment; filename="../../b.tar"'}))
    assert path.name == "a.tar"


@pytest.mark.parametrize(
    ("page", "reason_"),
    [
        (Page(b"", 404), "http_404"),
        (Page(b"", 403), "http_403"),
        (Page(b"", 500), "http_5xx"),
        (Page(b""), "empty_file"),
        (Page(BODY, cut=0), "truncated"),
        (Page(b"<html>sign in", headers={"Content-Type": "text/html; charset=utf-8"}), "unreadable_file"),
        (Page(gzip.compress(BODY), headers={"Content-Encoding": "gzip"}), "unreadable_file"),
        (Page(drop=True), "connection"),
        (Page(BODY, wait=2), "timeout"),
        (Page(BODY, 302, {"Location": "http://localhost/a.tar"}), "private_host"),
    ],
)
def test_each_fault_has_its_class(tmp_path, site, reason, page, reason_):
    site.pages["/a.tar"] = page
    assert reason(site.url("/a.tar"), timeout_seconds=0.3, attempts=2) == reason_
    assert "a.tar" not in left_over(tmp_path)


def test_addresses_of_this_network_need_leave(reason):
    assert reason("http://127.0.0.1/a.tar", allow_hosts=[]) == "private_host"
    assert reason("ftp://host/a.tar") == "bad_url"


def test_what_a_server_calls_encoded_is_kept_as_it_is(site, files):
    body = gzip.compress(BODY)
    assert files().fetch(site.add("/a.tsv.gz", body, headers={"Content-Encoding": "gzip"})).read_bytes() == body


def test_a_wrong_hash_leaves_nothing(tmp_path, site, files):
    url = site.add("/a.tar", BODY)
    with pytest.raises(Unusable, match="wrong_hash"):
        files().fetch(url, sha256="0" * 64)
    assert left_over(tmp_path) == []
    assert files().fetch(url).read_bytes() == BODY


def test_a_file_that_breaks_off_goes_on_where_it_was(site, files):
    page = Page(BODY, headers=ETAG, ranges=True)
    broken = tuple(Page(BODY, headers=ETAG, ranges=True, cut=cut) for cut in (100_000, 200_000, 300_000, 400_000))
    site.pages["/a.tar"] = Page(BODY, headers=ETAG, ranges=True, before=broken)
    assert files(attempts=1).fetch(site.url("/a.tar")).read_bytes() == page.body
    starts = [int(headers["Range"][6:-1]) for _, headers in site.requests[1:]]
    assert starts == sorted(set(starts)) and len(starts) == 4 and starts[0] > 0


@pytest.mark.parametrize("headers", [ETAG, {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}], ids=["etag", "date"])
@pytest.mark.parametrize("changed", [False, True])
def test_the_next_run_goes_on_if_the_file_is_still_the_same(site, files, headers, changed):
    site.pages["/a.tar"] = Page(BODY, headers=headers, ranges=True, cut=200_000, before=())
    with pytest.raises(Unusable, match="truncated"):
        files(attempts=1).fetch(site.url("/a.tar"))
    body = BODY[::-1] if changed else BODY
    later = {name: value.replace("one", "two").replace("2024", "2025") for name, value in headers.items()} if changed else headers
    site.pages["/a.tar"] = Page(body, headers=later, ranges=True)
    assert files().fetch(site.url("/a.tar")).read_bytes() == body
    _, asked = site.requests[-1]
    assert "Range" in asked and asked["If-Range"] == next(iter(headers.values()))


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}], ids=["none", "weak"])
def test_without_a_validator_it_starts_anew(site, files, headers):
    site.pages["/a.tar"] = Page(BODY, headers=headers, ranges=True, before=(Page(BODY, headers=headers, cut=200_000),))
    assert files().fetch(site.url("/a.tar")).read_bytes() == BODY
    assert "Range" not in site.requests[-1][1]


def test_a_server_that_knows_no_ranges_starts_anew(site, files):
    site.pages["/a.tar"] = Page(BODY, headers=ETAG, before=(Page(BODY, headers=ETAG, cut=200_000),))
    assert files().fetch(site.url("/a.tar")).read_bytes() == BODY


@pytest.mark.parametrize(
    "wrong",
    [
        Page(BODY[5:], 206, {**ETAG, "Content-Range": f"bytes 5-{len(BODY) - 1}/{len(BODY)}"}),
        Page(BODY[5:], 206, ETAG),
        Page(b"", 416, ETAG),
    ],
    ids=["another place", "no place", "unsatisfiable"],
)
def test_a_wrong_part_is_not_put_in(site, files, wrong):
    broken = Page(BODY, headers=ETAG, cut=200_000)
    site.pages["/a.tar"] = Page(BODY, headers=ETAG, before=(broken, wrong))
    assert files().fetch(site.url("/a.tar")).read_bytes() == BODY


def test_a_file_that_never_gets_further_is_given_up(site, reason):
    site.pages["/a.tar"] = Page(BODY, headers=ETAG, cut=200_000)
    assert reason(site.url("/a.tar"), attempts=3) == "truncated"
    assert site.hits["/a.tar"] <= 1 + 2 * 3


def test_what_is_whole_already_is_not_asked_for(site, files, tmp_path):
    url = site.add("/a.tar", BODY, headers=ETAG)
    path = files().fetch(url)
    part = path.with_name(".a.tar.part")
    path.rename(part)
    part.with_name(".a.tar.part.json").write_text(f'{{"bytes": {len(BODY)}, "validator": "\\"one\\""}}')
    assert files().fetch(url).read_bytes() == BODY and site.hits.total() == 1


@pytest.mark.parametrize("note", ["", "{}", "[]", '{"bytes": "9", "validator": 1}', '{"bytes": 3, "validator": "x"}'])
def test_a_damaged_note_starts_anew(site, files, note):
    url = site.add("/a.tar", BODY, headers=ETAG, ranges=True)
    path = files().fetch(url)
    path.rename(path.with_name(".a.tar.part"))
    path.with_name(".a.tar.part").write_bytes(b"something else")
    path.with_name(".a.tar.part.json").write_text(note)
    assert files().fetch(url).read_bytes() == BODY


def test_a_full_disk_is_named(site, files, full_disk):
    url = site.add("/a.tar", BODY)
    with full_disk(100_000), pytest.raises(UserError) as caught:
        files().fetch(url)
    assert f"{len(BODY):,} bytes cannot be written (File too large)" in str(caught.value)
    assert "make room" in str(caught.value) and "files/web" in str(caught.value)
    assert files().fetch(url).read_bytes() == BODY


def test_a_disk_without_room_is_named_before(site, files):
    with pytest.raises(UserError, match=r"bytes are needed and .* free; make room"):
        files().fetch(site.add("/a.tar", b"x", claimed=10**18))


def test_the_bar_counts_megabytes(site, files, capsys):
    files().fetch(site.add("/a.tar", bytes(3 * remote.MB)))
    assert "fetch a.tar: 100% 3/3 MB" in capsys.readouterr().err


def _fetch(files, url, answers):
    answers.put(files.fetch(url).read_bytes() == BODY)


def test_two_processes_share_one_download(site, files):
    url = site.add("/a.tar", BODY, rate=2_000_000)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    both = [context.Process(target=_fetch, args=(files(), url, answers)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert answers.get() and answers.get() and site.hits.total() == 1


def test_a_server_that_is_killed_and_comes_back(tmp_path, files):
    """As a real process: it dies in the middle of the file and is started again a second later."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served/a.tar").write_bytes(BODY)
    port = free_port()

    def serve(rate):
        command = [sys.executable, "-m", "tests.web", tmp_path / "served", str(port), str(rate)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def kill_and_start_again():
        assert server.stdout.readline() == "/a.tar whole\n"
        time.sleep(0.3)  # some of the file is on its way
        server.send_signal(signal.SIGKILL)
        time.sleep(1)
        servers.append(serve(10**9))

    servers = [server := serve(400_000)]
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    try:
        wait_for(port)
        client = context.Process(
            target=_fetch, args=(files(attempts=100), f"http://127.0.0.1:{port}/a.tar", answers), daemon=True
        )
        client.start()
        kill_and_start_again()
        client.join(60)
        assert client.exitcode == 0 and answers.get()
        asked = servers[-1].stdout.readline().split()
        assert asked[0] == "/a.tar" and asked[1].startswith("bytes=") and asked[1] != "bytes=0-"
    finally:
        for process in servers:
            process.kill()
            process.wait()


def wait_for(port):
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the server did not start")


def test_a_site_is_no_archive_of_another(site, files):
    """The same path on another server is another file."""
    with Site() as other:
        first = files().fetch(site.add("/a.tar", b"one"))
        second = files().fetch(other.add("/a.tar", b"two"))
    assert first.read_bytes() == b"one" and second.read_bytes() == b"two"
