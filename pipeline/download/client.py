"""The HTTP client of all downloads: who asks, how long it waits, where it may go, and the class of what goes wrong."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import NamedTuple, NoReturn, Self

import aiohttp
from yarl import URL

import pipeline
from pipeline.config.running import Downloads
from pipeline.download.hosts import Gate, PrivateAddress, Resolver, line, parse, shown
from pipeline.download.pace import Pace
from pipeline.download.retry import Later, Retry
from pipeline.ledger import Unusable

MAX_REDIRECTS = 10
REDIRECTS = frozenset({301, 302, 303, 307, 308})
CLASSES = {401: "http_401", 403: "http_403", 404: "http_404", 410: "http_410", 429: "http_429"}
NAMES_SECONDS = 300  # how long the address of a name is remembered
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Answer(NamedTuple):
    """A response of status 2xx, and where redirects led: the responses' X-Robots-Tag headers and the last URL."""

    response: aiohttp.ClientResponse
    url: URL
    robots: tuple[str, ...]
    redirected: bool


def user_agent(contact: str | None) -> str:
    """Says to those who are asked by what, what for, and whom to write to."""
    purpose = "collects training data for a text-to-image model" + (f"; +{contact}" if contact else "")
    return f"shoestring/{pipeline.__version__} ({purpose})"


class Client:
    """A session of requests, within the limits of runtime.downloads. Use it as an async context manager.

    With `many_hosts`, one that stays silent is given up, for the sake of the others.
    """

    def __init__(self, downloads: Downloads, retry: Retry, many_hosts: bool = False) -> None:
        self._downloads, self._retry = downloads, retry
        self._gate = Gate(downloads.allow_hosts)
        self._pace = Pace(downloads.parallel, downloads.per_host, retry, others=many_hosts)

    async def __aenter__(self) -> Self:
        wait = self._downloads.timeout_seconds
        connector = aiohttp.TCPConnector(
            limit=self._downloads.parallel,
            limit_per_host=self._downloads.per_host,
            resolver=Resolver(self._gate, wait),
            ttl_dns_cache=NAMES_SECONDS,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=wait, sock_read=wait),
            headers={"User-Agent": user_agent(self._downloads.contact), "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # a small gzip may hold any number of bytes
            trust_env=False,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    @asynccontextmanager
    async def get(
        self, url: str, headers: Mapping[str, str] = NO_HEADERS, also: frozenset[int] = frozenset()
    ) -> AsyncIterator[Answer]:
        """The answer to one request, over redirects; one whose status is in `also` is no failure. Reading it may fail like
        asking.

        Raises: Unusable with the class of the failure, Later if it may pass.
        """
        hop, seen, robots = parse(url), set[URL](), ()
        while True:
            seen.add(hop)
            async with self._ask(hop, headers) as response:
                robots += tuple(response.headers.getall("X-Robots-Tag", ()))
                self._check_status(hop.raw_host or "", response, also)
                if response.status not in REDIRECTS:
                    yield Answer(response, hop, robots, len(seen) > 1)
                    return
                hop = _next(hop, response.headers.get("Location"), seen)

    @asynccontextmanager
    async def _ask(self, url: URL, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        self._gate.check(url)
        host = url.raw_host or ""
        async with self._pace.turn(host):
            try:
                async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                    yield response
            # No OSError: one that is raised while the answer is read may be of this machine's disk.
            except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
                self._fail(host, url, error)

    def _fail(self, host: str, url: URL, error: Exception) -> NoReturn:
        if isinstance(error, aiohttp.InvalidURL):
            raise Unusable("bad_url", f"{shown(url)}: {line(error)}") from error
        if isinstance(error, aiohttp.ClientConnectorDNSError) and isinstance(error.os_error, PrivateAddress):
            raise Unusable("private_host", f"{shown(url)}: {error.os_error}") from error
        if isinstance(error, aiohttp.ClientPayloadError):
            raise Later("truncated", f"{shown(url)}: the answer ended early") from error
        reason, words = "connection", line(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            reason, words = "timeout", f"nothing came for {self._downloads.timeout_seconds:g} s"
        elif isinstance(error, aiohttp.ClientConnectorDNSError):
            reason = "dns"
        self._pace.failed(host, reason)
        raise Later(reason, f"{shown(url)}: {words}") from error

    def _check_status(self, host: str, response: aiohttp.ClientResponse, also: frozenset[int]) -> None:
        status = response.status
        words = f"{shown(response.url)}: status {status} {line(response.reason or '')}".rstrip()
        if status >= 500 or status == 429:
            reason = CLASSES.get(status, "http_5xx")
            self._pace.failed(host, reason, self._retry.asked(response.headers.get("Retry-After")))
            raise Later(reason, words)
        self._pace.answered(host)
        if not (200 <= status < 300 or status in REDIRECTS or status in also):
            raise Unusable(CLASSES.get(status, "http_4xx" if status >= 400 else "redirect"), words)


def _next(url: URL, location: str | None, seen: set[URL]) -> URL:
    """Where a redirect leads."""
    if location is None:
        raise Unusable("redirect", f"{shown(url)}: redirected to nowhere")
    try:
        target = parse(str(url.join(URL(location, encoded=location.isascii()))))
    except Unusable as error:
        raise Unusable("bad_url", f"redirected to {error.detail}") from error
    except ValueError as error:
        raise Unusable("redirect", f"{shown(url)}: redirected to what is no address ({line(error)})") from error
    if target in seen:
        raise Unusable("redirect", f"{shown(url)}: redirected in a circle")
    if len(seen) > MAX_REDIRECTS:
        raise Unusable("redirect", f"{shown(url)}: redirected more than {MAX_REDIRECTS} times")
    return target
