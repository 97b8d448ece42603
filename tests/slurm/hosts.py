"""Hosts for the nodes of a cluster: network namespaces with names and addresses of their own, joined by a switch.

Where a machine permits none, all of them are that machine.
"""

import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

NETWORK = "198.18"  # reserved for tests of networks, RFC 2544


@dataclass(frozen=True)
class Hosts:
    """`addresses` by name, and that of this machine for them (`here`). `together` says why they all are this machine, if so."""

    addresses: dict[str, str]
    here: str
    run: str = ""
    names: Path | None = None
    together: str = ""

    def hostname(self, name: str) -> str:
        """What `hostname` says there."""
        return socket.gethostname().partition(".")[0] if self.together else name

    def on(self, name: str, *command: str) -> tuple[str, ...]:
        """The command that does this there, without a process in between."""
        if self.together:
            return command
        # Not `ip netns exec`, which mounts a /sys without the cgroups that slurmd looks for.
        there = ("nsenter", f"--net=/run/netns/{self.run}-{name}", "unshare", "--uts", "--mount", "sh", "-c")
        return *there, 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"', name, str(self.names), *command


@contextmanager
def made(names: tuple[str, ...], folder: Path) -> Iterator[Hosts]:
    """Hosts of these names, until the end. The folder keeps the file that they find each other by."""
    with ExitStack() as undo:
        try:
            hosts = _apart(names, folder, undo)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            undo.close()
            reason = getattr(error, "stderr", "") or f"{error} (packages iproute2, util-linux)"
            hosts = Hosts(dict.fromkeys(names, "127.0.0.1"), "127.0.0.1", together=reason.strip())
        yield hosts


def _apart(names: tuple[str, ...], folder: Path, undo: ExitStack) -> Hosts:
    run = uuid.uuid4().hex[:8]  # others of that kind may be there
    here, *rest = (f"{NETWORK}.{int(run[:2], 16)}.{place}" for place in range(1, len(names) + 2))
    hosts = Hosts(dict(zip(names, rest, strict=True)), here, run, folder / "hosts")
    _write(hosts)
    switch = _namespace(f"{run}-switch", undo)  # apart from this machine, whose firewall may forward nothing
    _ip("-netns", switch, "link", "add", "bridge", "type", "bridge")
    _ip("-netns", switch, "link", "set", "bridge", "up")
    _ip("link", "add", run, "type", "veth", "peer", "name", "here", "netns", switch)
    undo.callback(_ip, "link", "delete", run)
    _plug("here", switch)
    _give(run, here)
    for name, address in hosts.addresses.items():
        host = _namespace(f"{run}-{name}", undo)
        _ip("-netns", host, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", switch)
        _ip("-netns", host, "link", "set", "lo", "up")
        _plug(name, switch)
        _give("eth0", address, "-netns", host)
        _call(*hosts.on(name, "true"))
    return hosts


def _namespace(name: str, undo: ExitStack) -> str:
    _ip("netns", "add", name)
    undo.callback(_ip, "netns", "delete", name)
    return name


def _plug(name: str, switch: str) -> None:
    _ip("-netns", switch, "link", "set", name, "master", "bridge", "up")


def _give(interface: str, address: str, *where: str) -> None:
    _ip(*where, "address", "add", f"{address}/24", "dev", interface)
    _ip(*where, "link", "set", interface, "up")


def _write(hosts: Hosts) -> None:
    known = {"localhost": "127.0.0.1", socket.gethostname(): hosts.here, **hosts.addresses}
    hosts.names.write_text("".join(f"{address} {name}\n" for name, address in known.items()))


def _ip(*arguments: str) -> None:
    _call("ip", *arguments)


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
