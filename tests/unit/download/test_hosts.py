"""Which hosts may be asked, however their address is written."""

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from pipeline.download.hosts import Gate, PrivateAddress, Resolver, is_public, literal, parse, shown
from pipeline.ledger import Unusable

PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.2.1",
    "192.168.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fc00::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700:4700::1111", "2a00:1450:4001:80e::200e"]
PRIVATE_4 = st.sampled_from([address for address in PRIVATE if ":" not in address]).map(IPv4Address)
ADDRESSES_4 = st.integers(0, 2**32 - 1).map(IPv4Address)
# How an IPv4 address may hide in an IPv6 one.
DISGUISES = {
    "mapped": lambda address: IPv6Address(int(IPv6Address("::ffff:0:0")) + int(address)),
    "6to4": lambda address: IPv6Address((0x2002 << 112) + (int(address) << 80) + 1),
    "teredo": lambda address: IPv6Address((0x20010000 << 96) + (0x08080808 << 64) + (0xFFFFFFFF ^ int(address))),
    "nat64": lambda address: IPv6Address(int(IPv6Address("64:ff9b::")) + int(address)),
    "compatible": lambda address: IPv6Address(int(address)),
}


def refused(url, allowed=()):
    try:
        Gate(allowed).check(parse(url))
        return None
    except Unusable as error:
        return error.reason


def written(address, forms):
    """An IPv4 address in the old forms: 1 to 4 parts, each decimal, octal or hexadecimal."""
    value, count = int(address), len(forms)
    parts = [value >> 8 * (3 - place) & 0xFF for place in range(count - 1)]
    parts.append(value & (1 << 8 * (5 - count)) - 1)
    return ".".join(form.format(part) for form, part in zip(forms, parts, strict=True))


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address):
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address):
    assert is_public(ip_address(address))


@pytest.mark.parametrize("disguise", DISGUISES)
@given(address=PRIVATE_4)
def test_a_private_address_in_an_ipv6_one(disguise, address):
    assert not is_public(DISGUISES[disguise](address))


def test_a_public_address_behind_nat64_may_be_asked():
    assert is_public(DISGUISES["nat64"](IPv4Address("8.8.8.8")))


@given(ADDRESSES_4, st.lists(st.sampled_from(["{}", "0{:o}", "0x{:x}", "0X{:X}"]), min_size=1, max_size=4))
def test_an_address_is_seen_however_it_is_written(address, forms):
    host = written(address, forms)
    assert literal(host) == address
    if not is_public(address):
        assert refused(f"http://{host}/") == refused(f"http://{host}./") == "private_host"
    elif host != str(address):
        assert refused(f"http://{host}/") == "bad_url"


@given(ADDRESSES_4, st.booleans())
def test_what_a_system_would_connect_to_is_what_is_checked(address, dot):
    """`getaddrinfo` and `literal` read the same address."""
    host = str(address) + "." * dot
    assert literal(host) == ip_address(socket.getaddrinfo(str(address), 80)[0][4][0])


@pytest.mark.parametrize(
    "host", ["[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "[fe80::1%25eth0]", "127.0.0.1", "①②⑦.0.0.1"]
)
def test_literal_private_hosts(host):
    assert refused(f"http://{host}:8080/a.jpg") == "private_host"


@pytest.mark.parametrize("allowed", ["127.0.0.1", "[::1]", "::1", "LOCALHOST.", "0:0:0:0:0:0:0:1"])
def test_hosts_that_the_config_names(allowed):
    gate = Gate([allowed])
    named = {host for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2", "2130706433") if gate.names(host)}
    assert named == {"LOCALHOST.": {"localhost"}, "127.0.0.1": {"127.0.0.1"}}.get(allowed, {"::1"})


def test_a_name_that_is_allowed_allows_no_other_way_to_its_address():
    assert refused("http://127.0.0.1/", ["localhost"]) == "private_host"


def resolve(host, allowed=()):
    async def look_up():
        return await Resolver(Gate(allowed), 5).resolve(host, 80)

    return asyncio.run(look_up())


def test_names_of_this_machine_are_found_out():
    with pytest.raises(PrivateAddress, match="localhost"):
        resolve("localhost")
    assert {found["host"] for found in resolve("localhost", ["localhost"])} <= {"127.0.0.1", "::1"}


def test_odd_forms_are_found_out_by_the_resolver_too():
    """Even if a form were not seen to be an address, the system reads it as one."""
    with pytest.raises(PrivateAddress):
        resolve("0x7f.1")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".invalid", ".", "\udcff"])
def test_a_name_without_an_address(host):
    with pytest.raises(OSError) as caught:
        resolve(host)
    assert not isinstance(caught.value, PrivateAddress)


@given(st.text())
def test_any_text_is_an_address_or_refused(text):
    for url in (text, f"http://{text}", f"http://host/{text}"):
        try:
            parsed = parse(url)
            assert parsed.scheme in ("http", "https") and parsed.raw_host and parsed.user is None and not parsed.raw_fragment
        except Unusable as error:
            assert error.reason == "bad_url" and error.detail.isprintable()


@pytest.mark.parametrize(
    "url", ["http://host/a%2Fb?c=%7E~", "https://host:444/?a=b%20c&d", "http://HOST/A"], ids=["path", "query", "case"]
)
def test_an_encoded_address_stays_as_it_is(url):
    assert str(parse(url)) == url.replace("HOST", "host")


def test_a_plain_address_is_encoded():
    assert str(parse(" http://host/a b/ü.jpg#part ")) == "http://host/a%20b/%C3%BC.jpg"


def test_secrets_of_an_address_are_not_shown():
    url = "https://user:hunter2@host/path/a.tar?signature=secret#fragment"
    assert shown(url) == shown(URL(url)) == "https://host/path/a.tar"
    with pytest.raises(Unusable) as caught:
        parse(url)
    assert "hunter2" not in caught.value.detail and "secret" not in caught.value.detail
