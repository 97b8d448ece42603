"""Which hosts may be asked. A list of URLs is untrusted: nobody may use it to reach into this machine's own network."""

import asyncio
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from pipeline.ledger import Unusable

NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
MAX_URL = 8192  # letters
MAX_SHOWN = 200


class PrivateAddress(OSError):
    """A name that leads to no address but private ones."""


def parse(text: Any) -> URL:
    """An http or https address without a fragment, as it will be asked for.

    Raises: Unusable (bad_url).
    """
    try:
        if not isinstance(text, str) or len(text) > MAX_URL:
            raise ValueError(f"not text of at most {MAX_URL} letters")
        text = text.strip()
        if any(letter <= " " or letter == "\x7f" for letter in text.replace(" ", "")):
            raise ValueError("control characters in it")
        # What is encoded already stays as it is, letter for letter: signatures of signed links depend on it.
        url = URL(text, encoded=text.isascii() and not set(text) & set(' "<>\\^`{|}')).with_fragment(None)
        if url.scheme not in ("http", "https") or not url.raw_host:
            raise ValueError("no http or https address")
        if url.user is not None or url.password is not None:
            raise ValueError("a user name or password in it")
        return url.with_host(url.raw_host.lower()) if url.raw_host != url.raw_host.lower() else url
    except ValueError as error:  # UnicodeError is one
        raise Unusable("bad_url", f"{shown(text)}: {line(error)}") from error


def shown(url: Any) -> str:
    """A URL for people: without what may be secret in it, and not too long."""
    text = url if isinstance(url, str) else str(url)
    text = text.split("?")[0].split("#")[0]
    scheme, mark, rest = text.partition("://")
    place, slash, path = rest.partition("/")
    text = f"{scheme}{mark}{place.rpartition('@')[2]}{slash}{path}" if mark else text
    return line(text)


def line(said: Any) -> str:
    """What a host says, or an error that quotes it, for people: one short line that any file can hold."""
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(said).split()))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address belongs to the internet: not private, loopback, link-local, multicast, reserved or unspecified,
    nor an IPv6 form of such an IPv4 address."""
    if isinstance(address, IPv6Address) and (inner := _inner(address)):
        return all(is_public(one) for one in inner)
    site_local = isinstance(address, IPv6Address) and address.is_site_local  # RFC 3879: no longer used, still routed
    return address.is_global and not (address.is_multicast or address.is_reserved or site_local)


def _inner(address: IPv6Address) -> list[IPv4Address]:
    """IPv4 addresses that an IPv6 address stands for: mapped, 6to4, Teredo (server and client), NAT64."""
    nat64 = IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ()), nat64]
    return [one for one in found if one is not None]


def literal(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a host is written as, also in the old forms (127.1, 0x7f000001, 2130706433); None for a name."""
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host.rstrip(".")))
    except (OSError, ValueError):
        return None


class Gate:
    """Lets through hosts of the internet, and those that are named in runtime.downloads.allow_hosts."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = {_plain(host) for host in allowed}

    def names(self, host: str) -> bool:
        return _plain(host) in self._allowed

    def check(self, url: URL) -> None:
        """Look at a host that is written as an address; names are looked at when they are resolved.

        Raises: Unusable (private_host, bad_url).
        """
        host = url.raw_host or ""
        address = literal(host)
        if address is None or self.names(host):
            return
        if not is_public(address):
            raise Unusable("private_host", f"{shown(url)}: {address} is no address of the internet")
        if str(address) != host.strip("[]") and address.version == 4:
            raise Unusable("bad_url", f"{shown(url)}: an odd way to write {address}")


def _plain(host: str) -> str:
    host = host.strip("[]").rstrip(".").lower()
    try:
        return str(ip_address(host))
    except ValueError:
        return host


class Resolver(AbstractResolver):
    """Names to addresses that may be asked. What is checked here is what is connected to, so that a name that changes its
    answer (DNS rebinding) gains nothing.

    A look-up has a thread of its own: a slow one holds up no other, and none holds up the end of the program.
    """

    def __init__(self, gate: Gate, timeout_seconds: float) -> None:
        self._gate, self._timeout = gate, timeout_seconds

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """Raises: OSError if the name leads nowhere, PrivateAddress if it leads to private addresses alone."""
        try:
            async with asyncio.timeout(self._timeout):
                found = await _look_up(host, port, family)
        except TimeoutError:
            raise OSError(None, f"no answer in {self._timeout:g} s") from None
        kept = [one for one in found if self._gate.names(host) or is_public(ip_address(one["host"]))]
        if found and not kept:
            raise PrivateAddress(f"{host} leads to {found[0]['host']}, which is no address of the internet")
        return kept

    async def close(self) -> None:
        pass


async def _look_up(host: str, port: int, family: int) -> list[ResolveResult]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[ResolveResult]] = loop.create_future()

    def settle(set_to: Any, value: Any) -> None:
        if not answer.done():  # nobody waits any more after a time-out
            set_to(value)

    def work() -> None:
        try:
            outcome = answer.set_result, _addresses(host, port, family)
        except Exception as error:
            outcome = answer.set_exception, error if isinstance(error, OSError) else OSError(None, str(error))
        with suppress(RuntimeError):  # the program has ended meanwhile
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=work, daemon=True, name="look-up").start()
    return await answer


def _addresses(host: str, port: int, family: int) -> list[ResolveResult]:
    infos = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    return [
        ResolveResult(hostname=host, host=address[0], port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST)
        for kind, _, proto, _, address in infos
    ]
