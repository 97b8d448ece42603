"""The page in a browser, and what the server answers. One server for all of it."""

import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from pipeline.cli import app
from pipeline.fingerprint import ROOT
from tests.browser import PHONE, open_page

PROMPT = 'a "red" <b>circle</b> ![x](http://example.com/x.png) $x$'
WAIT = 60_000  # ms; the first picture loads torch and the frozen models


def start(*arguments, **variables):
    command = [sys.executable, "-m", "pipeline", "serve", "--device", "cpu", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def server(results, tmp_path_factory):
    """(address, folder of its pictures). It must end at SIGTERM and leave nothing."""
    temporary = tmp_path_factory.mktemp("tmp")
    process = start("--port", 0, "--model", results / "model", "--results", results, TMPDIR=temporary)
    address = re.match(r"(http://127\.0\.0\.1:\d+) ", process.stdout.readline())[1]
    yield address, temporary
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0 and not list(temporary.iterdir())


@pytest.fixture(scope="module")
def generated(results, tmp_path_factory):
    """The pictures that `python -m pipeline generate` draws, by number."""
    out = tmp_path_factory.mktemp("generated")
    options = f"--seed 5 --steps 4 --guidance 2.5 --count 3 --out {out} --model {results / 'model'} --device cpu"
    app(["generate", PROMPT, *shlex.split(options)], standalone_mode=False)
    return [pixels(path.read_bytes()) for path in sorted(out.iterdir())]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def draw(page, prompt=PROMPT, **fields):
    """Fill in the form and wait for the line below the grid."""
    page.get_by_label("Prompt").fill(prompt)
    for name, value in fields.items():
        page.get_by_label(name.capitalize()).fill(str(value))
    page.get_by_role("button", name="Draw").click()


def pictures(page):
    return [pixels(page.request.get(image.get_attribute("src")).body()) for image in page.locator("#pictures img").all()]


def test_a_prompt_becomes_the_pictures_of_generate(server, generated):
    with open_page() as visit:
        page = visit.page
        page.goto(server[0])
        draw(page, seed=5, steps=4, guidance=2.5, pictures=3)
        page.locator("#line details").wait_for(timeout=WAIT)
        found, line = pictures(page), page.locator("#line")
        assert re.search(r"Seed 5, 4 steps, guidance 2\.5: final model \(32 px\) in \d+\.\d s\.", line.inner_text())
        assert PROMPT in line.inner_text()  # as text, not as HTML or Markdown
        command = shlex.split(line.locator("code").text_content())
        assert command[:5] == ["python", "-m", "pipeline", "generate", PROMPT] and command[-2:] == ["--count", "3"]
        assert len(found) == len(generated) == 3
        assert all(np.array_equal(one, other) for one, other in zip(found, generated, strict=True))
        assert not visit.errors and visit.hosts == {"127.0.0.1"}


def test_stages_are_drawn_side_by_side_and_the_seed_decides(server):
    with open_page() as visit:
        page = visit.page
        page.goto(server[0])
        page.get_by_role("checkbox", name="low, 16 px").check()
        draw(page, pictures=2)
        drawn = re.compile(r"Seed 0, 3 steps, guidance 1\.5: low \(16 px\) .* final model \(32 px\)")
        page.get_by_text(drawn).wait_for(timeout=WAIT)
        first = pictures(page)
        assert [one.shape[0] for one in first] == [16, 32, 16, 32]
        assert page.locator("#pictures .caption-label").all_inner_texts() == ["low", "final model"] * 2
        boxes = [image.bounding_box() for image in page.locator("#pictures img").all()]
        assert boxes[0]["y"] == boxes[1]["y"] < boxes[2]["y"] and boxes[0]["x"] == boxes[2]["x"] < boxes[1]["x"]
        page.get_by_role("button", name="Random").click()
        expect(page.get_by_label("Seed")).not_to_have_value("0")
        page.get_by_role("button", name="Draw").click()
        page.get_by_text(re.compile(r"Seed [1-9]\d*, 3 steps")).wait_for(timeout=WAIT)
        assert all(not np.array_equal(one, other) for one, other in zip(first, pictures(page), strict=True))
        assert not visit.errors and visit.hosts == {"127.0.0.1"}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_on_a_phone_and_what_a_mistake_says(server, dark):
    with open_page(PHONE, dark) as visit:
        page = visit.page
        page.goto(server[0])
        draw(page, prompt=" ")
        assert page.get_by_role("alert").inner_text() == "The prompt is empty: say what to draw."
        draw(page, "one", steps=1)
        page.get_by_text("Steps must be a whole number from 2 to 200.").wait_for()
        draw(page, "one", steps=2)
        page.locator("#line details").wait_for(timeout=WAIT)
        assert page.locator("#pictures img").count() == 4 and not page.get_by_role("alert").count()
        assert not visit.scrolls_sideways()
        assert max(image.bounding_box()["x"] + image.bounding_box()["width"] for image in page.locator("img").all()) <= PHONE[0]
        background = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
        assert (max(background) < 64) == dark and (min(background) > 192) != dark
        assert not visit.errors and visit.hosts == {"127.0.0.1"}


def status(address, path, **headers):
    try:
        return urllib.request.urlopen(urllib.request.Request(address + path, headers=headers)).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://127.0.0.1:9/", "/gradio_api/proxy=http://127.0.0.1:9/", "/gradio_api/upload", "/gradio_api/info",
        "/gradio_api/runs", "/gradio_api/file/etc/hostname", "/login", "/monitoring", "/docs", "/openapi.json",
    ],
)  # fmt: skip
def test_routes_that_the_page_does_not_need_are_closed(server, path):
    assert status(server[0], path) == 404 and status(server[0], "/config") == 200


@pytest.mark.parametrize("path", ["/etc/hostname", "{model}/model_index.json", "{root}/README.md"])
def test_files_that_are_no_pictures_are_not_sent(server, results, path):
    path = path.format(model=results / "model", root=ROOT)
    assert Path(path).exists() and status(server[0], f"/gradio_api/file={path}") == 403


def test_requests_under_another_name_are_refused(server):
    assert status(server[0], "/", Host="localhost:1") == status(server[0], "/", Host="[::1]:1") == 200
    assert {status(server[0], "/", Host=name) for name in ("example.com", "127.0.0.1.example.com", "[::1", "")} == {404}


def test_mistakes_are_one_line(results, tmp_path, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        processes = [start("--model", results / "model", "--port", port), start("--model", tmp_path, "--port", 0)]
        assert [(process.wait(60), process.stdout.read()) for process in processes] == [(1, "")] * 2
    lines = sorted(capfd.readouterr().err.splitlines())
    assert lines[0] == f"error: --host 127.0.0.1 --port {port}: Address already in use; name another address or port"
    assert len(lines) == 2 and lines[1].startswith(f"error: {tmp_path}/model_index.json: ")


def test_another_address_is_warned_of(results, capfd):
    process = start("--model", results / "model", "--port", 0, "--host", "0.0.0.0")
    assert re.match(r"http://0\.0\.0\.0:\d+ ", process.stdout.readline())
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    told = "warning: --host 0.0.0.0: everyone who can reach this machine can draw; there is no password"
    assert capfd.readouterr().err.splitlines() == [told]
