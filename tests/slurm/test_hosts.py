"""The hosts that nodes run on: apart, found by name, and gone afterwards."""

import subprocess
import uuid
from pathlib import Path

import psutil
import pytest

from tests.slurm.hosts import Hosts, made


@pytest.fixture
def names() -> tuple[str, str]:
    """No other test has these."""
    return tuple(f"{uuid.uuid4().hex[:6]}-{place}" for place in "ab")


def said(hosts: Hosts, name: str, *command: str) -> str:
    done = subprocess.run(hosts.on(name, *command), check=True, capture_output=True, text=True)
    return done.stdout.strip()


def namespaces(names: tuple[str, ...]) -> list[str]:
    return [file.name for file in Path("/run/netns").glob("*") if file.name.endswith(names)]


def test_they_know_their_names_and_addresses_and_are_gone_at_the_end(names, tmp_path):
    with made(names, tmp_path) as hosts:
        if hosts.together:
            pytest.skip(f"hosts of their own need network namespaces, which this machine does not permit: {hosts.together}")
        assert len(namespaces(names)) == 2 and hosts.run in psutil.net_if_addrs()
        for name in names:
            assert said(hosts, name, "hostname") == name
            assert [said(hosts, name, "getent", "hosts", each).split() for each in names] == [
                [hosts.addresses[each], each] for each in names
            ]
            assert f"inet {hosts.addresses[name]}/24" in said(hosts, name, "ip", "address", "show", "eth0")
    assert not namespaces(names) and hosts.run not in psutil.net_if_addrs()


def test_where_there_can_be_none_all_are_this_machine_and_nothing_is_left(names, tmp_path):
    wrong = (names[0], f"no/{names[1]}")  # the first one is made, the second refused
    with made(wrong, tmp_path) as hosts:
        assert hosts.together and set(hosts.addresses.values()) == {hosts.here} == {"127.0.0.1"}
        assert hosts.on(names[0], "true") == ("true",)
        assert not namespaces(names)
