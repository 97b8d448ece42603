"""Images of URLs: each fault of a server has its class, and what comes in is kept."""

import gzip
import hashlib
import socket
import threading
import time
import zlib
from email.utils import formatdate

import pytest

from pipeline.download import images
from pipeline.download.images import Wanted, fetch_images
from pipeline.errors import UserError
from tests.unit.download.conftest import QUICK
from tests.web import Page, free_port


def test_an_image_comes_as_it_is(site, outcome, jpeg):
    assert outcome(site.add("/a.jpg", jpeg)) == jpeg


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (Page(b"", 401), "http_401"),
        (Page(b"", 403), "http_403"),
        (Page(b"", 404), "http_404"),
        (Page(b"", 410), "http_410"),
        (Page(b"", 429), "http_429"),
        (Page(b"", 418), "http_4xx"),
        (Page(b"", 500), "http_5xx"),
        (Page(b"", 503), "http_5xx"),
        (Page(b"", 300), "redirect"),
        (Page(b"", 302), "redirect"),
        (Page(b"", 302, {"Location": "http://"}), "redirect"),
        (Page(b"", 302, {"Location": "ftp://somewhere/a.jpg"}), "bad_url"),
        (Page(b"", 302, {"Location": "http://[1:2/"}), "redirect"),
        (Page(b""), "empty_file"),
        (Page(b"", 204), "empty_file"),
        (Page(b"<!doctype html><p>gone"), "not_an_image"),
        (Page(b'\xef\xbb\xbf \n{"error": "gone"}'), "not_an_image"),
        (Page(b"\xff\xd8\xff" + b"x" * 5000, cut=2000), "truncated"),
        (Page(b"\xff\xd8\xff" + b"x" * 5000, claimed=6000), "truncated"),
        (Page(b"", claimed=images.MAX_IMAGE_BYTES + 1), "too_large"),
        (Page(drop=True), "connection"),
        (Page(b"late", wait=3), "timeout"),
        (Page(b"slow" * 1000, cut=10, rate=50, wait=3), "timeout"),
        (Page(b"x", headers={"Content-Encoding": "br"}), "decode_error"),
        (Page(b"plain", headers={"Content-Encoding": "gzip"}), "decode_error"),
        (Page(gzip.compress(b"\xff\xd8" * 900)[:-9], headers={"Content-Encoding": "gzip"}), "truncated"),
    ],
)
def test_each_fault_has_its_class(site, outcome, page, reason):
    site.pages["/a.jpg"] = page
    assert outcome(site.url("/a.jpg"), timeout_seconds=0.3, attempts=2) == reason


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "bad_url"),
        ("no address", "bad_url"),
        ("file:///etc/passwd", "bad_url"),
        ("http://user:secret@host/a.jpg", "bad_url"),
        ("http://host:99999/a.jpg", "bad_url"),
        ("http://host/a\r\nHost: other", "bad_url"),
        (None, "bad_url"),
        ("http://no-such-host.invalid/a.jpg", "dns"),
        (f"http://{'a' * 70}.invalid/", "dns"),
        ("http://127.0.0.1:{port}/", "connection"),
        ("http://10.0.0.1/a.jpg", "private_host"),
        ("http://localhost/a.jpg", "private_host"),
        ("http://169.254.169.254/latest/meta-data", "private_host"),
    ],
)
def test_addresses_that_lead_nowhere(outcome, url, reason):
    assert outcome(url and url.replace("{port}", str(free_port())), attempts=1) == reason


@pytest.fixture
def raw():
    """URL of a server that answers one request with these very bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def start(answer):
        threading.Thread(target=serve, args=(answer,), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    def serve(answer):
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(answer)
        connection.close()

    yield start
    listener.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
    ],
)
def test_what_is_no_http_is_a_fault_of_the_connection(raw, outcome, answer):
    assert outcome(raw(answer), attempts=1) == "connection"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nLocation: http://[\xff\xfe" + b"x" * 5000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 404 \xff\xfe\x1b[2J\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Robots-Tag: noai \xff\xfe\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: \xff\xfe\r\nContent-Length: 1\r\n\r\nx",
    ],
)
def test_words_of_a_host_are_made_printable(raw, fetch, answer):
    (fetched,) = fetch(raw(answer), attempts=1, opt_out=["noai"])
    assert fetched.image.detail.isprintable() and len(fetched.image.detail) < 1000
    fetched.image.detail.encode()


def test_a_fault_for_a_while_is_waited_out(site, outcome, jpeg):
    faults = (Page(b"", 500), Page(drop=True), Page(jpeg, cut=50))
    assert outcome(site.add("/a.jpg", jpeg, before=faults), attempts=4) == jpeg
    assert site.hits["/a.jpg"] == 4


@pytest.mark.parametrize("attempts", [1, 2, 3, 5])
def test_attempts_are_those_of_all_passes(site, outcome, attempts):
    assert outcome(site.add("/a.jpg", status=500), attempts=attempts) == "http_5xx"
    assert site.hits["/a.jpg"] == attempts


@pytest.mark.parametrize("status", [401, 403, 404, 410, 418])
def test_a_refusal_is_final(site, outcome, status):
    outcome(site.add("/a.jpg", status=status))
    assert site.hits["/a.jpg"] == 1


@pytest.mark.parametrize("header", ["1", "date"])
def test_retry_after_is_honoured(site, outcome, jpeg, header):
    """A date has whole seconds, so it may come to less than the second it was meant as."""
    retry_after = "1" if header == "1" else formatdate(time.time() + 2, usegmt=True)
    busy = Page(b"", 429, {"Retry-After": retry_after})
    started = time.monotonic()
    assert outcome(site.add("/a.jpg", jpeg, before=(busy,))) == jpeg
    assert time.monotonic() - started > 0.9


def test_a_host_that_asks_for_a_pause_is_asked_by_nobody_meanwhile(site, fetch, jpeg):
    busy = site.add("/busy.jpg", jpeg, before=(Page(b"", 503, {"Retry-After": "1"}),))
    urls = [site.add(f"/{number}.jpg", jpeg, wait=0.1) for number in range(20)]
    started = time.monotonic()
    assert all(fetched.image == jpeg for fetched in fetch(busy, *urls, per_host=2))
    asked = 20 * 0.1 / 2
    assert time.monotonic() - started > 1 + asked - 0.3


def test_a_storm_of_errors_of_one_host_is_waited_out(site, fetch, jpeg):
    """A host that faults on whatever it is asked, and is well again later."""
    storm = [site.add(f"/{number}.jpg", jpeg, before=(Page(b"", 500),) * (number < 100) * 2) for number in range(200)]
    assert all(fetched.image == jpeg for fetched in fetch(*storm))


def test_a_silent_host_is_given_up_and_the_others_are_not(site, fetch, jpeg):
    port = free_port()
    silent = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(200)]
    found = fetch(*silent, *[site.add(f"/{number}.jpg", jpeg) for number in range(20)], allow_hosts=["127.0.0.1"], per_host=2)
    assert {fetched.image.reason for fetched in found[:200]} == {"connection"}
    assert sum("not asked" in fetched.image.detail for fetched in found[:200]) > 100


def test_redirects_are_followed_and_noted(site, fetch, jpeg):
    site.add("/b.jpg", jpeg)
    (fetched,) = fetch(site.add("/a.jpg", status=302, headers={"Location": "b.jpg?key=secret"}))
    assert fetched.image == jpeg
    assert fetched.notes == (f"redirected to {site.url('/b.jpg')}",)


@pytest.mark.parametrize(("hops", "arrives"), [(10, True), (11, False)])
def test_ten_redirects_are_enough(site, outcome, jpeg, hops, arrives):
    for hop in range(hops):
        site.add(f"/{hop}", status=307, headers={"Location": f"/{hop + 1}"})
    site.add(f"/{hops}", jpeg)
    assert outcome(site.url("/0")) == (jpeg if arrives else "redirect")


def test_a_circle_is_found(site, outcome):
    site.add("/a", status=301, headers={"Location": "/b#1"})
    site.add("/b", status=301, headers={"Location": "/a#2"})
    assert outcome(site.url("/a")) == "redirect"
    assert site.hits == {"/a": 1, "/b": 1}


@pytest.mark.parametrize("target", ["http://localhost:{port}/b", "http://127.1:{port}/b", "http://[::1]:{port}/b", "file:///b"])
def test_a_redirect_leads_to_no_private_address(site, outcome, jpeg, target):
    site.add("/b", jpeg)
    url = site.add("/a", status=302, headers={"Location": target.format(port=site.port)})
    assert outcome(url) == ("bad_url" if target.startswith("file") else "private_host")
    assert site.hits["/b"] == 0


def test_a_hash_is_checked(site, fetch, jpeg):
    url, sha256 = site.add("/a.jpg", jpeg), hashlib.sha256(jpeg).hexdigest()
    good, bad = fetch(Wanted(url, sha256.upper()), Wanted(url, "0" * 64))
    assert good.image == jpeg and bad.image.reason == "wrong_hash"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compression_that_was_not_asked_for_is_undone(site, outcome, jpeg, encoding):
    body = gzip.compress(jpeg) if encoding == "gzip" else zlib.compress(jpeg)
    assert outcome(site.add("/a.jpg", body, headers={"Content-Encoding": encoding})) == jpeg
    assert site.requests[0][1]["Accept-Encoding"] == "identity"


def test_a_gzip_bomb_does_not_go_off(site, outcome):
    bomb = zlib.compressobj(9, wbits=31)
    zeros = bytes(2**20)
    body = b"".join(bomb.compress(zeros) for _ in range(256)) + bomb.flush()
    assert len(body) < 2**20
    assert outcome(site.add("/a.jpg", body, headers={"Content-Encoding": "gzip"})) == "too_large"


def test_bytes_without_end_are_not_kept(site, outcome):
    body = b"\xff" * (images.MAX_IMAGE_BYTES + 1)
    assert outcome(site.add("/a.jpg", body, claimed=-1)) == "too_large"


def test_a_drop_now_and_then_is_no_image(site, outcome):
    """Each byte comes in time, and the image never ends."""
    url = site.add("/a.jpg", b"\xff" * 3000, rate=50)
    assert outcome(url, timeout_seconds=0.1, attempts=1) == "timeout"


@pytest.mark.parametrize(
    ("header", "left_out"),
    [
        ("noai", True),
        ("noindex, NoImageAI", True),
        ("someone: noai", True),
        ("otherbot: noindex, noai", True),
        ("noindex, nofollow", False),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST", False),
        ("noaiwords", False),
    ],
)
def test_a_host_that_opts_out_is_left_out(site, fetch, jpeg, header, left_out):
    url = site.add("/a.jpg", jpeg, headers={"X-Robots-Tag": header})
    (fetched,) = fetch(url, opt_out=["noai", "noimageai"])
    if left_out:
        assert fetched.image.reason == "opted_out" and header in fetched.image.detail
    else:
        assert fetched.image == jpeg and fetched.notes == (f"X-Robots-Tag: {header}",)


def test_a_host_is_not_heard_if_nobody_asks(site, fetch, jpeg):
    (fetched,) = fetch(site.add("/a.jpg", jpeg, headers={"X-Robots-Tag": "noai"}))
    assert fetched.image == jpeg and fetched.notes == ("X-Robots-Tag: noai",)


def test_the_host_that_redirects_may_opt_out(site, outcome, jpeg):
    site.add("/b.jpg", jpeg)
    url = site.add("/a.jpg", status=302, headers={"Location": "/b.jpg", "X-Robots-Tag": "noai"})
    assert outcome(url, opt_out=["noai"]) == "opted_out"


def test_who_asks_says_so(site, outcome, jpeg):
    url = site.add("/a.jpg", jpeg)
    outcome(url, contact="https://example.org/us")
    agent = site.requests[0][1]["User-Agent"]
    assert agent.startswith("shoestring/") and "+https://example.org/us" in agent


def test_signed_links_are_asked_for_letter_by_letter(tmp_path, site, outcome, jpeg):
    asked = []
    site.page = lambda request: asked.append(request.raw_path) or Page(jpeg)
    assert outcome(site.url("/a%7Eb%2Fc?sig=a%2Fb~c%3D&x=%zz")) == jpeg
    assert asked == ["/a%7Eb%2Fc?sig=a%2Fb~c%3D&x=%zz"]


def test_outcomes_come_in_the_order_of_the_list(site, fetch, jpeg):
    urls = [site.add(f"/{number}.jpg", jpeg + bytes([number]), wait=0.2 * (number % 3 == 0)) for number in range(30)]
    assert [fetched.image for fetched in fetch(*urls)] == [jpeg + bytes([number]) for number in range(30)]


def test_no_more_requests_at_a_time_than_allowed(site, fetch, jpeg):
    now, most = 0, 0

    async def count(request):
        nonlocal now, most
        now += 1
        most = max(most, now)
        answer = await Site_answer(request)
        now -= 1
        return answer

    Site_answer, site._answer = site._answer, count
    fetch(*[site.add(f"/{number}.jpg", jpeg, wait=0.02) for number in range(60)], per_host=3)
    assert most <= 3


def test_hosts_take_turns():
    wanted = [Wanted(f"http://a/{n}") for n in range(6)] + [Wanted(f"http://b/{n}") for n in range(3)] + [Wanted(None)]
    order = [images._host(wanted[index].url) or "-" for index in images._spread(wanted)]
    assert "".join(order) == "abaab-aaba"


def test_what_came_in_is_not_asked_for_again(site, fetch, jpeg):
    good, gone, later = site.add("/good.jpg", jpeg), site.add("/gone.jpg", status=404), site.add("/later.jpg", status=500)
    assert [f.image if isinstance(f.image, bytes) else f.image.reason for f in fetch(good, gone, later)] == [
        jpeg,
        "http_404",
        "http_5xx",
    ]
    site.hits.clear()
    site.add("/later.jpg", jpeg)
    again = fetch(good, gone, later)
    assert again[0].image == again[2].image == jpeg and again[1].image.reason == "http_404"
    assert site.hits == {"/later.jpg": 1}


@pytest.mark.parametrize("change", ["url", "hash", "opt_out", "order"])
def test_another_list_starts_anew(site, fetch, jpeg, change):
    one, two = site.add("/1.jpg", jpeg), site.add("/2.jpg", jpeg)
    fetch(one, two)
    other = {"url": [one, one], "hash": [Wanted(one, hashlib.sha256(jpeg).hexdigest()), two], "order": [two, one]}
    site.hits.clear()
    fetch(*other.get(change, [one, two]), opt_out=["noai"] if change == "opt_out" else [])
    assert site.hits.total() == 2


def test_two_processes_do_not_write_one_journal(site, tmp_path, downloads, jpeg):
    wanted = [Wanted(site.add("/a.jpg", jpeg))]
    first = fetch_images(wanted, tmp_path / "journal", downloads)
    next(first)
    with pytest.raises(UserError, match="another process"):
        next(fetch_images(wanted, tmp_path / "journal", downloads))
    first.close()


def test_nothing_is_wanted(fetch):
    assert fetch() == []


def test_the_title_is_that_of_the_bar(site, tmp_path, downloads, jpeg, capsys):
    wanted = [Wanted(site.add("/a.jpg", jpeg, before=(Page(b"", 500),) * 2))]
    list(fetch_images(wanted, tmp_path / "journal", downloads, title="photos 3", retry=QUICK))
    shown = capsys.readouterr().err
    assert "photos 3: 100% 1/1" in shown and "photos 3, again: 100% 1/1" in shown
