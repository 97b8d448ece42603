"""One file of a web server: resumed where it broke off, checked, renamed when it is whole."""

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import aiohttp
from tqdm import tqdm

from pipeline.artifacts import check_room, fsync, sha256_file
from pipeline.config.running import Downloads
from pipeline.download.client import Answer, Client
from pipeline.download.hosts import line, shown
from pipeline.download.retry import Later, Retry
from pipeline.download.room import writing
from pipeline.ledger import Unusable
from pipeline.lock import alone_at
from pipeline.runtime import progress

MB = 10**6
CHUNK = 2**20
RANGE_UNSATISFIABLE = 416
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


def download(
    url: str, path: Path, downloads: Downloads, retry: Retry, sha256: str | None = None, most: int | None = None
) -> None:
    """Fetch `url` as `path` unless it is there, of `most` bytes. Another process that fetches it already is waited for.

    Raises: Unusable with the class of the failure, after all attempts; UserError if the disk is full.
    """
    with writing(path.parent, 0):
        path.parent.mkdir(parents=True, exist_ok=True)
    with alone_at(path):
        if not path.exists():
            asyncio.run(_Download(url, path, downloads, retry, most).run(sha256))


class _Download:
    """Bytes so far are in a .part file beside `path`; a note beside that says of which state of the file they are."""

    def __init__(self, url: str, path: Path, downloads: Downloads, retry: Retry, most_bytes: int | None) -> None:
        self._url, self._path, self._downloads, self._retry = url, path, downloads, retry
        self._most_bytes = most_bytes
        self._part, self._note = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.part.json")
        self._most = 0  # bytes that were there at any time

    async def run(self, sha256: str | None) -> None:
        with progress(f"fetch {self._path.name}", 0, "MB") as bar:
            async with Client(self._downloads, self._retry) as client:
                self._most, whole = self._size(), False
                while not whole:
                    async for attempt in self._retry.tries(self._downloads.attempts):
                        with attempt:
                            whole = await self._further(client, bar)
        self._check(sha256)
        with writing(self._path.parent, self._size()):
            fsync(self._part)
            os.replace(self._part, self._path)
            fsync(self._path.parent)
            self._note.unlink(missing_ok=True)

    async def _further(self, client: Client, bar: tqdm) -> bool:
        """Whether the file is whole now. A failure counts only if nothing came of the request: a large file may break
        off any number of times."""
        try:
            await self._receive(client, bar)
            return True
        except Later:
            if self._size() > self._most:
                self._most = self._size()
                return False
            raise

    async def _receive(self, client: Client, bar: tqdm) -> None:
        have, note = self._so_far()
        if have and have == note["bytes"]:
            return
        asked = {"Range": f"bytes={have}-", "If-Range": note["validator"]} if have else {}
        async with client.get(self._url, asked, also=frozenset({RANGE_UNSATISFIABLE})) as answer:
            self._check_answer(answer)
            response, start = answer.response, have
            if response.status != 206:
                start, note = 0, self._start_anew(response)
            elif not have or _begins_at(response) != (have, note["bytes"]):
                self._forget()
                raise Later("truncated", f"{shown(self._url)}: the server went on at another place than asked")
            await self._write(response, start, note["bytes"], bar)

    def _check_answer(self, answer: Answer) -> None:
        response, place = answer.response, shown(answer.url)
        if response.status == RANGE_UNSATISFIABLE:
            self._forget()
            raise Later("truncated", f"{place}: the server has fewer bytes than came before")
        if response.content_type == "text/html" and self._path.suffix not in (".html", ".htm"):
            raise Unusable("unreadable_file", f"{place}: a page came instead of the file, as when a link has expired")
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        # Servers call a .gz file encoded: it is stored as it is, and so it comes.
        if encoding not in ("", "identity") and self._path.suffix not in (".gz", ".tgz"):
            raise Unusable("unreadable_file", f"{place}: sent in an encoding that was not asked for ({line(encoding)})")

    def _so_far(self) -> tuple[int, dict[str, Any]]:
        """Bytes to go on behind, and the note of them. Without a validator they may be of another state of the file."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            have = self._size()
            if note["bytes"] is not None and note["validator"] is not None and have <= note["bytes"]:
                return have, note
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return 0, {"bytes": None, "validator": None}

    def _start_anew(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        etag = response.headers.get("ETag", "")
        # RFC 9110, 13.1.5: a weak tag must not be used here.
        validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
        self._check_size(response.content_length or 0)
        note = {"bytes": response.content_length, "validator": validator}
        with writing(self._path.parent, response.content_length or 0):
            self._part.write_bytes(b"")  # first, lest the note speak of bytes of before
            self._note.write_text(json.dumps(note), encoding="utf-8")
        return note

    async def _write(self, response: aiohttp.ClientResponse, start: int, total: int | None, bar: tqdm) -> None:
        needed = (total or start) - start
        check_room(self._path.parent, needed)
        bar.total = None if total is None else -(-total // MB)
        bar.update(start // MB - bar.n)
        with open(self._part, "ab", buffering=0) as file:
            async for part in response.content.iter_chunked(CHUNK):
                self._check_size(start + len(part))
                with writing(self._path.parent, needed):
                    file.write(part)
                start += len(part)
                bar.update(start // MB - bar.n)
        if total is not None and start != total:
            raise Later("truncated", f"{shown(self._url)}: {start} of {total} bytes came")

    def _check(self, sha256: str | None) -> None:
        fault = None
        if self._size() == 0:
            fault = Unusable("empty_file", f"{shown(self._url)}: 0 bytes")
        elif sha256 is not None and (found := sha256_file(self._part)) != sha256.strip().lower():
            fault = Unusable("wrong_hash", f"{shown(self._url)}: sha256 {found}, it should be {sha256}")
        if fault:
            self._forget()
            raise fault

    def _check_size(self, size: int) -> None:
        if self._most_bytes is not None and size > self._most_bytes:
            self._forget()
            raise Unusable("too_large", f"{shown(self._url)}: more than {self._most_bytes:,} bytes")

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _forget(self) -> None:
        self._part.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self._most = 0


def _begins_at(response: aiohttp.ClientResponse) -> tuple[int, int] | None:
    """First byte and size of the whole file that a 206 names."""
    found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    return (int(found[1]), int(found[2])) if found and found[2] != "*" else None
