"""A web server on loopback for tests, with all the faults of the real ones. As a program it serves a folder: it can be
killed, and started again on its port."""

import asyncio
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from types import MappingProxyType

from aiohttp import web

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Page:
    """What is at a path, and how it is sent."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    claimed: int | None = None  # Content-Length, where it is not that of the body; -1: none is sent
    cut: int | None = None  # the connection breaks after so many bytes
    wait: float = 0.0  # seconds before the answer
    rate: float | None = None  # bytes a second
    drop: bool = False  # the connection is closed without an answer
    ranges: bool = False  # answers Range, with If-Range
    before: tuple["Page", ...] = ()  # what the first requests get instead


class Site:
    """Pages by path, which may be changed at any time; `requests` are (path, headers) in the order they came."""

    def __init__(self, pages: Mapping[str, Page] = MappingProxyType({}), port: int = 0) -> None:
        self.pages, self.requests, self.hits, self.port = dict(pages), [], Counter(), port
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._started.wait(20)
        return self

    def __exit__(self, *error):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def url(self, path=""):
        return f"http://{HOST}:{self.port}{path}"

    def add(self, path, body=b"", **how):
        self.pages[path] = Page(body, **how)
        return self.url(path)

    def page(self, request):
        """What a request gets; a hub makes pages up."""
        return self.pages.get(request.path, Page(b"no such page", 404))

    async def _serve(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, HOST, self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, request):
        seen = self.hits[request.path]
        self.hits[request.path] += 1
        self.requests.append((request.path, dict(request.headers)))
        page = self.page(request)
        page = page.before[seen] if seen < len(page.before) else page
        await asyncio.sleep(page.wait)
        if page.drop or request.transport is None:  # None: who asked has gone
            _break(request)
            return web.Response()
        return await self._send(request, *ranged(request, page))

    async def _send(self, request, page, body):
        response = web.StreamResponse(status=page.status, headers=page.headers)
        if page.claimed != -1:
            response.content_length = len(body) if page.claimed is None else page.claimed
        body, piece = body[: page.cut], len(body) if page.rate is None else max(1, int(page.rate / 50))
        try:
            await response.prepare(request)
            for start in range(0, len(body) if request.method != "HEAD" else 0, piece or 1):
                await response.write(body[start : start + piece])
                await asyncio.sleep(0.02 if page.rate else 0)
            if page.cut is not None or page.claimed not in (None, -1):
                await asyncio.sleep(0.01)  # the bytes before the break arrive
                _break(request)
            else:
                await response.write_eof()
        except ConnectionError:
            pass  # who asked has gone
        return response


def _break(request):
    if request.transport is not None:
        request.transport.abort()


def ranged(request, page):
    """The page and the part of its body that a Range asks for, if its If-Range is still true."""
    asked, state = request.headers.get("Range"), page.headers.get("ETag") or page.headers.get("Last-Modified")
    if not (page.ranges and asked) or request.headers.get("If-Range", state) != state:
        return page, page.body
    start = int(asked.removeprefix("bytes=").partition("-")[0])
    if start >= len(page.body):
        return Page(status=416, headers={"Content-Range": f"bytes */{len(page.body)}"}), b""
    span = {"Content-Range": f"bytes {start}-{len(page.body) - 1}/{len(page.body)}"}
    cut = None if page.cut is None else max(0, page.cut - start)
    return Page(page.body, 206, {**page.headers, **span}, cut=cut, rate=page.rate), page.body[start:]


def free_port():
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]


def main(folder, port, rate):
    """Serve the files of `folder`, `rate` bytes a second each, and print every request."""
    pages = {}
    for file in Path(folder).iterdir():
        headers = {"Last-Modified": formatdate(file.stat().st_mtime, usegmt=True)}
        pages[f"/{file.name}"] = Page(file.read_bytes(), headers=headers, rate=float(rate), ranges=True)
    with Site(pages, int(port)) as site:
        shown = 0
        while True:
            for path, headers in site.requests[shown:]:
                print(path, headers.get("Range", "whole"), flush=True)
                shown += 1
            time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
