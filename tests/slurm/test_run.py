"""The whole DAG as jobs of SLURM, by the commands of docs/how-to/slurm.md."""

import json
import os
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.jobs import TOLERANCES
from tests.slurm.conftest import NODES, Cluster, Job, Run, until

pytestmark = pytest.mark.timeout(1800)  # on a busy machine; minutes on a quiet one
OVERLAY = "schedule: [low_masked, high_full]\nruntime: {gpus: 1, sample_shards: 2}\n"
STAGE = Path("results/train/low_masked")


@pytest.fixture(scope="module")
def whole(make_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has come to its end."""
    run = make_run(tmp_path_factory.mktemp("whole") / "project", OVERLAY)
    run.finish()
    return run


def test_the_run_ends_in_a_card_and_the_same_command_does_nothing_more(whole):
    card = json.loads((whole.folder / "results/fid_coco.json").read_text())
    assert card["fid"] > 0 and [stage["name"] for stage in card["stages"]] == ["low_masked", "high_full"]
    assert {job.state for job in whole.jobs("train") + whole.jobs("evaluate")} == {"COMPLETED"}
    assert "Nothing to be done" in whole.finish()


@pytest.mark.parametrize("step", ["collect", "sample"])
def test_shards_that_are_ready_together_go_out_as_an_array(whole, step):
    """A shard that becomes ready by itself, as that of the evaluation set may, goes out by itself."""
    arrays = Counter(job.array for job in whole.jobs(step) if job.array)
    assert max(arrays.values(), default=0) > 1


@pytest.mark.parametrize(("step", "gpus"), [("train", 1), ("sample", 1), ("encode", 1), ("collect", 0)])
def test_gpus_are_asked_for_where_they_are_used(whole, step, gpus):
    for job in whole.jobs(step):
        told = whole.cluster.command("scontrol", "show", "job", job.number)
        assert "NumNodes=1 " in told and ("TresPerJob=gres:gpu:1" in told) == bool(gpus), told


class Place(NamedTuple):
    """Namespaces of a process, the host that it was told to meet others at, and the connections of its own host."""

    network: str
    names: str
    meets_at: str
    connections: str


@pytest.fixture(scope="module")
def over_two_nodes(
    whole: Run, make_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Job, list[Place]]:
    """A run whose training had two nodes: with its job, and where its processes were."""
    run = make_run(tmp_path_factory.mktemp("two") / "project", OVERLAY.replace("gpus: 1", "gpus: 1, nodes: 2"))
    shutil.copytree(whole.folder / "results", run.folder / "results", dirs_exist_ok=True, symlinks=True)
    shutil.rmtree(run.folder / STAGE)
    shutil.rmtree(run.folder / "results/work/train")
    known = set(run.jobs("train"))
    driver = run.start(target=f"{STAGE}/summary.json")
    places = until(lambda: at_work(run.cluster) or driver.poll() is not None, 400, "no training over two nodes")
    assert driver.wait() == 0, run.said()[-6000:]
    (job,) = set(run.jobs("train")) - known
    return run, job, places


def at_work(cluster: Cluster) -> list[Place]:
    """Where the processes of a training over all nodes are, in the order of nodes; nothing until there is one on each."""
    workers = [cluster.processes(SLURMD_NODENAME=node, LOCAL_RANK="0") for node in NODES]
    return [place(first) for first, *_ in workers] if all(workers) else []


def place(worker: psutil.Process) -> Place:
    its = Path("/proc", str(worker.pid))
    network, names = (os.readlink(its / "ns" / kind) for kind in ("net", "uts"))
    return Place(
        network, names, worker.environ()["MASTER_ADDR"], "".join(file.read_text() for file in (its / "net").glob("tcp*"))
    )


def test_training_over_two_nodes_makes_what_one_process_makes(whole, over_two_nodes):
    run, job, _ = over_two_nodes
    told = run.cluster.command("scontrol", "show", "job", job.number)
    assert "NumNodes=2 " in told and "TresPerJob=gres:gpu:2" in told
    assert json.loads((run.folder / STAGE / "summary.json").read_text())["processes"] == 2
    for node in NODES:
        assert f"launch task StepId={job.number}.0" in (run.cluster.folder / f"{node}.log").read_text()
    for name, kind in (("model", "weights"), ("ema", "weights"), ("optimizer", "state")):
        one, two = vector(whole.folder, name), vector(run.folder, name)
        assert (one - two).norm() <= TOLERANCES[kind] * one.norm(), name


def test_the_two_nodes_are_two_hosts_that_meet_by_the_name_of_the_first(over_two_nodes):
    run, job, places = over_two_nodes
    hosts = run.cluster.hosts
    if hosts.together:
        pytest.skip(f"two hosts need network namespaces, which this machine does not permit: {hosts.together}")
    for kind, theirs in (("net", [place.network for place in places]), ("uts", [place.names for place in places])):
        assert len({os.readlink(f"/proc/self/ns/{kind}"), *theirs}) == 3
    first, second = places
    assert first.meets_at == second.meets_at == NODES[0]
    assert in_hex(hosts.addresses[NODES[0]], 20000 + int(job.number) % 10000) in second.connections


def in_hex(address: str, port: int) -> str:
    """As the kernel writes it in /proc/net/tcp and, of IPv4 as well, at the end of the address in /proc/net/tcp6."""
    return f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}:{port:04X}"


def vector(folder: Path, name: str) -> torch.Tensor:
    tensors = load_file(folder / STAGE / f"{name}.safetensors")
    return torch.cat([tensors[key].double().flatten() for key in sorted(tensors)])
