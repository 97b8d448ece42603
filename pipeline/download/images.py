"""The images of a list of URLs: many hosts at a time, every failure with its class, and a journal to resume from."""

import asyncio
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
from tenacity import AsyncRetrying
from tqdm import tqdm

from pipeline.config.running import Downloads
from pipeline.download.client import Answer, Client
from pipeline.download.hosts import line, shown
from pipeline.download.journal import Fetched, Journal
from pipeline.download.retry import PATIENT, Later, Retry
from pipeline.ledger import Unusable
from pipeline.runtime import progress

__all__ = ["MAX_IMAGE_BYTES", "Fetched", "Wanted", "fetch_images"]

MAX_IMAGE_BYTES = 64 * 2**20  # an image of a URL list
LARGE_BYTES = 4 * 2**20  # of images above it only `LARGE_AT_ONCE` are in memory
LARGE_AT_ONCE = 4
WAITING = 16  # tasks a connection: those that wait before another try hold none
WHOLE_TIMES = 10  # an image may take so many time-outs in all: a host could send a byte now and then for ever
PAGE_MARKS = (b"<", b"{", b"[")  # what HTML, SVG and JSON begin with, and no image


class Wanted(NamedTuple):
    """An image to fetch."""

    url: str
    sha256: str | None = None


def fetch_images(
    wanted: Sequence[Wanted],
    journal: Path,
    downloads: Downloads,
    opt_out: Iterable[str] = (),
    title: str = "images",
    retry: Retry = PATIENT,
) -> Iterator[Fetched]:
    """An outcome for each of `wanted`, in their order, however they come in.

    All are fetched first, with a progress bar, and a second pass tries those again that failed for now. What has come in
    is in the file `journal` at once: run again after a kill, nothing in it is asked for twice but what failed for now.
    The caller deletes it. Of the downloads.attempts of an image half are made in the first pass.

    Raises: UserError if the disk is full, or another process is at the same list.
    """
    words = frozenset(word.lower() for word in opt_out)
    with Journal(journal, _digest(wanted, words), len(wanted)) as kept:
        for attempts, pass_title in _passes(downloads.attempts, title):
            _fetch_missing(wanted, kept, downloads, words, pass_title, retry, attempts)
        kept.flush()
        for index in range(len(wanted)):
            yield kept.read(index)


def _passes(attempts: int, title: str) -> list[tuple[int, str]]:
    """Attempts and title of each pass: they add up to `attempts`."""
    first = (attempts + 1) // 2
    return [(first, title)] + ([(attempts - first, f"{title}, again")] if attempts > first else [])


def _digest(wanted: Sequence[Wanted], opt_out: Iterable[str]) -> bytes:
    digest = hashlib.sha256(repr(sorted(opt_out)).encode())
    for one in wanted:
        digest.update(repr((one.url, one.sha256)).encode("utf-8", "surrogatepass"))
    return digest.digest()


def _fetch_missing(
    wanted: Sequence[Wanted],
    journal: Journal,
    downloads: Downloads,
    opt_out: frozenset[str],
    title: str,
    retry: Retry,
    attempts: int,
) -> None:
    """One pass over all whose outcome is unknown, or may have passed."""
    missing = [index for index in _spread(wanted) if not journal.is_settled(index)]
    if not missing:
        return
    with progress(title, len(wanted), initial=len(wanted) - len(missing)) as bar:
        job = _Pass(wanted, journal, downloads, opt_out, retry.tries(attempts), bar)
        asyncio.run(job.run(missing, Client(downloads, retry, many_hosts=True)))


def _spread(wanted: Sequence[Wanted]) -> list[int]:
    """Indices in an order that spreads each host's evenly, so that none is asked for much at a time."""
    hosts = [_host(one.url) for one in wanted]
    count, seen, place = Counter(hosts), Counter[str](), []
    for host in hosts:
        place.append((seen[host] + 0.5) / count[host])
        seen[host] += 1
    return sorted(range(len(wanted)), key=place.__getitem__)


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except (ValueError, AttributeError, TypeError):
        return ""


class _Pass:
    """One pass: a number of tasks that take the next index, fetch it, and write it down."""

    def __init__(
        self,
        wanted: Sequence[Wanted],
        journal: Journal,
        downloads: Downloads,
        opt_out: frozenset[str],
        tries: AsyncRetrying,
        bar: tqdm,
    ) -> None:
        self._wanted, self._journal, self._downloads = wanted, journal, downloads
        self._opt_out, self._tries, self._bar = opt_out, tries, bar
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    async def run(self, indices: list[int], client: Client) -> None:
        queue = iter(indices)
        count = min(len(indices), WAITING * self._downloads.parallel)
        async with client:
            tasks = [asyncio.create_task(self._work(client, queue)) for _ in range(count)]
            try:
                await asyncio.gather(*tasks)
            finally:  # what one raised, or Ctrl-C, ends all
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, client: Client, queue: Iterator[int]) -> None:
        for index in queue:
            self._journal.add(index, await self._fetch(client, self._wanted[index]))
            self._bar.update()

    async def _fetch(self, client: Client, wanted: Wanted) -> Fetched:
        try:
            async for attempt in self._tries.copy():
                with attempt:
                    return await self._once(client, wanted)
        except Unusable as error:
            return Fetched(error)
        raise AssertionError("tenacity returns or raises")

    async def _once(self, client: Client, wanted: Wanted) -> Fetched:
        async with client.get(wanted.url) as answer:
            self._check_opt_out(answer.robots)
            notes = _notes(answer)
            image = await self._body(answer.response)
        _check_image(image, wanted, answer)
        return Fetched(image, notes)

    def _check_opt_out(self, robots: tuple[str, ...]) -> None:
        """A word counts whichever user-agent it is addressed to: `otherbot: noai` says what the host wants."""
        for value in robots:
            if self._opt_out & set(re.split(r"[\s,;:]+", value.lower())):
                raise Unusable("opted_out", f"X-Robots-Tag: {line(value)}")

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        if (response.content_length or 0) > MAX_IMAGE_BYTES:
            raise Unusable("too_large", f"{response.content_length} bytes, the limit is {MAX_IMAGE_BYTES}")
        seconds = WHOLE_TIMES * self._downloads.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                body = await self._read(response)
        except TimeoutError as error:
            if isinstance(error, aiohttp.ServerTimeoutError):
                raise
            raise Later("timeout", f"{shown(response.url)}: not whole after {seconds:g} s") from error
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding in ("", "identity"):
            return body
        async with self._large:
            return await asyncio.to_thread(_plain, body, encoding)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        parts: list[bytes] = []
        if await _read_up_to(response, parts, LARGE_BYTES):
            return b"".join(parts)
        async with self._large:
            if await _read_up_to(response, parts, MAX_IMAGE_BYTES):
                return b"".join(parts)
        raise Unusable("too_large", f"more bytes than {MAX_IMAGE_BYTES}, the limit")


async def _read_up_to(response: aiohttp.ClientResponse, parts: list[bytes], limit: int) -> bool:
    """Append to `parts` until the end, or until they have more than `limit` bytes; returns whether it was the end."""
    size = sum(map(len, parts))
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > limit:
            return False
    return True


def _plain(body: bytes, encoding: str) -> bytes:
    """A body without the compression that was not asked for."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Unusable("decode_error", f"sent in the encoding {line(encoding)}, which was not asked for")
    try:
        stream = zlib.decompressobj(wbits=47)  # a gzip or zlib head, as it comes
        plain = stream.decompress(body, MAX_IMAGE_BYTES + 1)
    except zlib.error as error:
        raise Unusable("decode_error", f"sent in the encoding {encoding}, damaged ({error})") from error
    if len(plain) > MAX_IMAGE_BYTES:
        raise Unusable("too_large", f"more bytes than {MAX_IMAGE_BYTES}, the limit, in {len(body)} of {encoding}")
    if not stream.eof:
        raise Later("truncated", f"its {encoding} ends early")
    return plain


def _check_image(image: bytes, wanted: Wanted, answer: Answer) -> None:
    if not image:
        raise Unusable("empty_file", f"{shown(answer.url)}: 0 bytes")
    if image[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(PAGE_MARKS):
        kind = line(answer.response.headers.get("Content-Type", "no type"))
        raise Unusable("not_an_image", f"{shown(answer.url)}: a page ({kind}), starts with {image[:16]!r}")
    if wanted.sha256 is not None:
        found = hashlib.sha256(image).hexdigest()
        if found != wanted.sha256.strip().lower():
            raise Unusable("wrong_hash", f"{shown(answer.url)}: sha256 {found}, the table has {line(wanted.sha256)}")


def _notes(answer: Answer) -> tuple[str, ...]:
    redirect = (f"redirected to {shown(answer.url)}",) if answer.redirected else ()
    return redirect + tuple(f"X-Robots-Tag: {line(value)}" for value in answer.robots)
