"""Two thousand images of a list, a third of them with faults of all kinds, and processes that are killed on the way."""

import gzip
import hashlib
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest

from pipeline.config.running import Downloads
from pipeline.download.images import MAX_IMAGE_BYTES, Wanted, fetch_images
from pipeline.download.journal import MAGIC, Journal
from pipeline.download.retry import PASSING, Retry
from pipeline.fingerprint import ROOT
from pipeline.ledger import Unusable
from tests.web import HOST, Page, Site, free_port

COUNT = 2000
TIMEOUT = 1.0  # seconds; a healthy page comes in milliseconds
QUICK = Retry(first=0.01, longest=0.05)
DOWNLOADS = Downloads(allow_hosts=[HOST], per_host=48, parallel=64, timeout_seconds=TIMEOUT, attempts=3)
BOMB = gzip.compress(bytes(MAX_IMAGE_BYTES + 1))
START = b"\xff\xd8\xff"
# What is wrong with a page, and the class it has. Each is at a path of its own, so that the server counts who asks.
FAULTS = {
    "http_401": Page(status=401),
    "http_403": Page(status=403),
    "http_404": Page(status=404),
    "http_410": Page(status=410),
    "http_4xx": Page(status=451),
    "http_429": Page(status=429),
    "http_5xx": Page(status=502),
    "redirect": Page(status=302, headers={"Location": "?"}),
    "private_host": Page(status=302, headers={"Location": "http://localhost/"}),
    "bad_url": Page(status=302, headers={"Location": "file:///etc/passwd"}),
    "empty_file": Page(b""),
    "not_an_image": Page(b"<html>this image is gone"),
    "truncated": Page(START + b"x" * 3000, cut=1500),
    "too_large": Page(BOMB, headers={"Content-Encoding": "gzip"}),
    "connection": Page(drop=True),
    "timeout": Page(START, wait=3 * TIMEOUT),
    "wrong_hash": Page(START),
    "opted_out": Page(START, headers={"X-Robots-Tag": "noai"}),
}
ELSEWHERE = {
    "dns": "http://no-such-host.invalid/{}",
    "connection": f"http://{HOST}:{free_port()}/{{}}",
    "private_host": "http://169.254.169.254/{}",
    "bad_url": "data:image/png;base64,{}",
}


def image(number):
    """Bytes that no two numbers share."""
    return START + random.Random(number).randbytes(2000 + number)


@pytest.fixture
def site():
    with Site() as running:
        yield running


@pytest.fixture
def listed(site):
    """Wanted images and what should become of each: its bytes, or a class. 30% have faults; a third of the others do only
    at first."""
    chance = random.Random(3)
    kinds = [*((reason, page) for reason, page in FAULTS.items()), *ELSEWHERE.items()]
    wanted, expected = [], []
    for number in range(COUNT):
        path, body = f"/{number}.jpg", image(number)
        if chance.random() < 0.7:
            passing = chance.choice([Page(status=500), Page(status=429), Page(drop=True), Page(body, cut=900)])
            url, what = site.add(path, body, before=(passing,) * (chance.random() < 0.3)), body
        else:
            what, how = chance.choice(kinds)
            if isinstance(how, Page):
                site.pages[path] = how
            url = site.url(path) if isinstance(how, Page) else how.format(number)
        wanted.append(Wanted(url, hashlib.sha256(body).hexdigest() if what in (body, "wrong_hash") else None))
        expected.append(what)
    return wanted, expected


def outcomes(wanted, folder, downloads=DOWNLOADS):
    fetched = fetch_images(wanted, folder / "journal", downloads, ["noai"], retry=QUICK)
    return [one.image.reason if isinstance(one.image, Unusable) else one.image for one in fetched]


def start(wanted, folder, downloads=DOWNLOADS):
    """The same in a process of its own."""
    process = multiprocessing.get_context("forkserver").Process(target=outcomes, args=(wanted, folder, downloads))
    process.start()
    return process


def wait_for(condition, process):
    for _ in range(6000):
        if condition():
            return
        assert process.is_alive(), "over before it was killed"
        time.sleep(0.005)
    raise AssertionError("it did not come so far")


def test_every_good_image_arrives_and_every_bad_one_has_its_class(listed, tmp_path):
    wanted, expected = listed
    assert outcomes(wanted, tmp_path) == expected
    bad = [what for what in expected if isinstance(what, str)]
    assert 0.25 < len(bad) / COUNT < 0.35 and set(bad) == set(FAULTS) | set(ELSEWHERE)


def test_killed_thirty_times_it_asks_for_nothing_twice_that_was_final(site, listed, tmp_path):
    wanted, expected = listed
    settled, hits = set(), {}
    chance = random.Random(5)
    for share in sorted(chance.uniform(0.02, 0.8) for _ in range(30)):
        process = start(wanted, tmp_path)
        wait_for(lambda at=share: sum(map(bool, site.hits.values())) > at * COUNT, process)
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert {index: site.hits[f"/{index}.jpg"] for index in settled} == hits
        digest = (tmp_path / "journal").read_bytes()[len(MAGIC) :][:32]
        with Journal(tmp_path / "journal", digest, COUNT) as journal:
            now = {index for index in range(COUNT) if journal.is_settled(index)}
        assert settled <= now
        settled, hits = now, {index: site.hits[f"/{index}.jpg"] for index in now}

    assert outcomes(wanted, tmp_path) == expected
    assert {index: site.hits[f"/{index}.jpg"] for index in settled} == hits and len(settled) > COUNT / 2

    site.hits.clear()
    assert outcomes(wanted, tmp_path) == expected
    asked = {int(path[1:-4]) for path, count in site.hits.items() if count}
    assert asked == {index for index in range(COUNT) if expected[index] in PASSING and site.url() in wanted[index].url}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_stops_at_once_and_keeps_what_it_has(site, tmp_path, number):
    """Also while hosts keep it waiting."""
    wanted = [Wanted(site.add(f"/{index}.jpg", image(index), wait=0 if index < 50 else 60)) for index in range(100)]
    patient = DOWNLOADS.model_copy(update={"timeout_seconds": 60.0})
    process = start(wanted, tmp_path, patient)
    wait_for(lambda: len(site.requests) >= 50 + DOWNLOADS.per_host, process)
    time.sleep(0.2)
    told = time.monotonic()
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode not in (0, None) and time.monotonic() - told < 5
    for index in range(100):
        site.add(f"/{index}.jpg", image(index))
    site.hits.clear()
    assert outcomes(wanted, tmp_path) == [image(index) for index in range(100)]
    assert site.hits.total() == 50


def test_a_server_that_is_killed_and_comes_back_is_asked_again(tmp_path):
    """As a real process that is away for a second in the middle of the list."""
    served, port = tmp_path / "served", free_port()
    served.mkdir()
    for number in range(150):
        (served / f"{number}.jpg").write_bytes(image(number))

    def serve():
        command = [sys.executable, "-m", "tests.web", served, str(port), "50000"]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    servers = [serve()]
    # 150 images of 40 ms or more, 4 at a time: over a second.
    downloads = DOWNLOADS.model_copy(update={"per_host": 4, "attempts": 4})
    wanted = [Wanted(f"http://{HOST}:{port}/{number}.jpg") for number in range(150)]
    patient = Retry(first=0.2, longest=2)
    try:
        fetching = multiprocessing.get_context("fork").Process(
            target=lambda: list(fetch_images(wanted, tmp_path / "journal", downloads, retry=patient)), daemon=True
        )
        fetching.start()
        for _ in range(40):
            servers[0].stdout.readline()
        servers[0].kill()
        time.sleep(1)
        servers.append(serve())
        fetching.join(60)
        found = list(fetch_images(wanted, tmp_path / "journal", downloads, retry=patient))
        assert fetching.exitcode == 0 and [one.image for one in found] == [image(number) for number in range(150)]
    finally:
        for server in servers:
            server.kill()
            server.wait()


def peak(wanted, folder, answers):
    """Bytes of memory that fetching took at most, beyond what the program itself takes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    arrived = sum(len(one.image) for one in fetch_images(wanted, folder / "journal", DOWNLOADS, retry=QUICK))
    answers.put((arrived, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)))


def test_memory_is_bounded_however_large_the_images(site, tmp_path):
    """All of them at a time would be 40 times 16 MB."""
    body = START + bytes(16 * 2**20)
    wanted = [Wanted(site.add(f"/{number}.jpg", body)) for number in range(40)]
    context = multiprocessing.get_context("forkserver")
    answers = context.Queue()
    process = context.Process(target=peak, args=(wanted, tmp_path, answers))
    process.start()
    arrived, most = answers.get(timeout=120)
    process.join(60)
    assert arrived == 40 * len(body) and most < 400 * 2**20
