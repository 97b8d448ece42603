"""Two hosts: network namespaces joined by a veth pair, each with a torchrun of its own that meets the other."""

import shutil
import subprocess
import time
import uuid

import pytest

from tests.jobs import AT_ONCE, WITHOUT_END, Launcher, workers
from tests.training import Trainer, ends, wait_until

ADDRESSES = ("10.213.77.1", "10.213.77.2")


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts():
    """Names of two namespaces; their interfaces have the same names."""
    if shutil.which("ip") is None:
        pytest.skip("two hosts need network namespaces: there is no `ip` (package iproute2)")
    name = uuid.uuid4().hex[:8]
    names = [f"{name}-a", f"{name}-b"]
    try:
        for host in names:
            ip("netns", "add", host)
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for host, address in zip(names, ADDRESSES, strict=True):
            ip("-netns", host, "address", "add", f"{address}/24", "dev", host)
            for interface in ("lo", host):
                ip("-netns", host, "link", "set", interface, "up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"two hosts need network namespaces, which this machine does not permit: {error.stderr.strip()}")
    finally:
        for host in names:
            subprocess.run(["ip", "netns", "delete", host], capture_output=True)


def launchers(hosts):
    """One a host. Their hostnames lead nowhere, so each is told which interface and address are its own."""
    meet = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29400")
    return [
        Launcher(
            *("torchrun", *meet, "--rdzv-id", "toy", "--rdzv-conf", f"is_host={int(place == 0)}", "--local-addr", address),
            prefix=("ip", "netns", "exec", host),
            GLOO_SOCKET_IFNAME=host,
        )
        for place, (host, address) in enumerate(zip(hosts, ADDRESSES, strict=True))
    ]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_hosts_train_what_one_process_trains(warmed, hosts, parallel):
    name = f"hosts-{parallel}"
    assert warmed.launch(name, *launchers(hosts), parallel=parallel) == {}
    assert warmed.summary(name)["processes"] == 2


def test_a_process_that_dies_on_one_host_ends_the_job_on_both(hosts, vae, tmp_path, slice_of, toy):
    trainers = [Trainer(launcher, vae, tmp_path) for launcher in launchers(hosts)]
    job = [trainer.start(slice_of(images=240_000), toy, **WITHOUT_END) for trainer in trainers]
    wait_until(job[0], lambda: trainers[0].measured() > 0)
    (worker,) = workers(job[1])
    started = time.monotonic()
    worker.kill()
    assert ends(job) == [1, 1] and time.monotonic() - started < AT_ONCE
    assert "process 0 ends because another one is gone" in trainers[0].log().read_text()
