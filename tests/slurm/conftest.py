"""A SLURM of one's own: munged, slurmctld, and two nodes with four GPUs each that are none, on hosts of their own.

No systemd, no accounting database; it starts in seconds.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from pipeline.fingerprint import ROOT
from tests.slurm.hosts import Hosts, made
from tests.workflow.conftest import SMOKE, Project

SITE = "workflow/profiles/slurm/site.yaml.example"
# The cores of the test machine are few, and results on a CPU depend on their number.
ADDED_TO_SITE = "max-threads: 1\n"
TARGET = "results/fid_coco.json"
OFTEN = "--slurm-init-seconds-before-status-checks 2"
PROGRAMS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
INSTALL = "apt-get install --no-install-recommends"
SYSTEM = Path("/etc/slurm/slurm.conf")  # jobs of the plugin look for it there: their steps start without SLURM_CONF
NODES = ("node1", "node2")
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,requeue_delay=0
SlurmdParameters=config_overrides
SlurmdTimeout=15
KillWait=15
# Minutes: SLURM looks at limits twice a minute, and is not to be there before the training itself.
OverTimeLimit=1
MinJobAge=7200
GresTypes=gpu
{nodes}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs=4 RealMemory=64000 Gres=gpu:h100:4"


class Job(NamedTuple):
    """What squeue knows of a job; an array has one for each of its tasks. `rule` is `rule_train` and its like."""

    number: str
    state: str
    rule: str
    node: str
    folder: str

    @property
    def array(self) -> str | None:
        return self.number.partition("_")[0] if "_" in self.number else None


def until(true: Callable[[], object], seconds: float = 120, what: str = "") -> object:
    """What it gives as soon as that is true."""
    ends = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < ends, what or true
        time.sleep(0.1)
    return found


class Cluster:
    """`environment` is what its clients need."""

    def __init__(self, folder: Path, hosts: Hosts) -> None:
        self.folder, self.hosts = folder, hosts
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._configure()

    def start(self) -> None:
        folder = self.folder
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        self._start("munged", "--foreground", "--force", f"--key-file={key}", *files)
        until((folder / "munge.socket").exists)
        self._start("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        until(lambda: all(state == "idle" for state in self.states().values()), what="the nodes do not come up")

    def _configure(self) -> None:
        (self.folder / "state").mkdir()
        host = socket.gethostname().partition(".")[0]
        nodes = "\n".join(
            NODE.format(name=name, host=self.hosts.hostname(name), address=address, port=free_port())
            for name, address in self.hosts.addresses.items()
        )
        text = CONFIGURATION.format(host=host, address=self.hosts.here, port=free_port(), folder=self.folder, nodes=nodes)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text("Name=gpu Type=h100 File=/dev/zero,/dev/null,/dev/full,/dev/random\n")

    def _start(self, *command: str, name: str | None = None) -> None:
        bound = ("setpriv", "--pdeathsig", "KILL", *command)  # none outlives the tests, however those end
        name = name or command[0]
        with open(self.folder / f"{name}.log", "ab") as log:
            self._daemons[name] = subprocess.Popen(bound, env=self.environment, stdout=log, stderr=log)

    def start_node(self, node: str) -> None:
        self._start(*self.hosts.on(node, "slurmd", "-D", "-N", node), name=node)

    def kill_slurmd(self, node: str) -> None:
        """What it has started lives on."""
        self._daemons[node].kill()
        self._daemons[node].wait()

    def lose_node(self, node: str) -> None:
        """As if its power went: slurmd and all that runs there. First those who could still report the end of another, which
        are not known by their environment: they write their title over it."""
        running = self.processes(SLURMD_NODENAME=node)
        parents = {parent for process in running for parent in process.parents() if parent.name() == "slurmstepd"}
        self.kill_slurmd(node)
        kill([*parents, *running])

    def update_nodes(self, state: str) -> None:
        self.command("scontrol", "update", f"nodename={','.join(NODES)}", f"state={state}", "reason=test")

    def command(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """Of the nodes."""
        done = subprocess.run(["sinfo", "-h", "-N", "-o", "%N %t"], env=self.environment, capture_output=True, text=True)
        return dict(line.split() for line in done.stdout.splitlines()) or dict.fromkeys(NODES, "unknown")

    def jobs(self, *states: str) -> list[Job]:
        """Of all states unless some are named."""
        chosen = ",".join(states) or "all"
        lines = self.command("squeue", "-h", "-r", f"--states={chosen}", "--format=%i|%T|%k|%N|%Z").splitlines()
        fields = (line.split("|") for line in lines)
        return [Job(number, state, comment.partition("_wildcards_")[0], *rest) for number, state, comment, *rest in fields]

    def stop(self) -> None:
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()
        kill(self.processes(SLURM_CONF=self.environment["SLURM_CONF"]))

    def steps(self, name: str) -> list[psutil.Process]:
        """`python -m pipeline NAME …`, the oldest first."""
        return [process for process in self.processes() if command_of(process)[1:4] == ["-m", "pipeline", name]]

    def processes(self, **variables: str) -> list[psutil.Process]:
        """Those of this cluster in whose environment these stand, the oldest first."""
        wanted = {"SLURM_CONF": self.environment["SLURM_CONF"], **variables}
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if wanted.items() <= process.environ().items():
                    found.append(process)
        return sorted(found, key=psutil.Process.create_time)


class Run:
    """A project, and the commands of docs/how-to/slurm.md in it, on the small overlay and another one."""

    def __init__(self, cluster: Cluster, folder: Path, overlay: str) -> None:
        self.cluster, self.folder = cluster, folder
        project = Project(folder)
        shutil.copy(ROOT / SITE, folder / SITE)
        self._shell(documented("cp ")).wait()
        with open(folder / "site.yaml", "a") as site:
            site.write(ADDED_TO_SITE)
        self._overlays = f"{SMOKE} {project.overlay('overlay.yaml', overlay).name}"

    def start(self, *options: str, target: str = TARGET) -> subprocess.Popen[bytes]:
        """The documented command, with options before its target; what it says is added to `driver.log`."""
        command = documented("snakemake --profile").replace("workflow/presets/paper.yaml", self._overlays)
        command = command.replace(TARGET, target)
        return self._shell(command.replace(" -- ", f" {' '.join((OFTEN, *options))} -- "))

    def finish(self, *options: str, target: str = TARGET) -> str:
        """Run it to its end, which must be good; returns what it said."""
        said = len(self.said())
        assert self.start(*options, target=target).wait() == 0, self.said()[-6000:]
        return self.said()[said:]

    def jobs(self, step: str, *states: str) -> list[Job]:
        """Of this run and the rule."""
        found = self.cluster.jobs(*states)
        return [job for job in found if job.rule == f"rule_{step}" and job.folder == str(self.folder)]

    def state(self, wanted: Job) -> str:
        return next(job.state for job in self.cluster.jobs() if job.number == wanted.number)

    def logs(self, step: str, text: str) -> bool:
        """Whether the log of a job of the rule has the text."""
        found = (self.folder / "results/logs" / step).glob("*.log")
        return any(text in log.read_text() for log in found)

    def give_training(self, minutes: str) -> None:
        """Wall time, in site.yaml."""
        site = self.folder / "site.yaml"
        text = site.read_text()
        changed, count = re.subn(r"^    runtime: \w+", f"    runtime: {minutes}", text, flags=re.M)
        assert count == 1
        site.write_text(changed)

    def said(self) -> str:
        log = self.folder / "driver.log"
        return log.read_text() if log.exists() else ""

    def _shell(self, command: str) -> subprocess.Popen[bytes]:
        environment = self.cluster.environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        with open(self.folder / "driver.log", "ab") as log:
            return subprocess.Popen(f"exec {command}", shell=True, cwd=self.folder, env=environment, stdout=log, stderr=log)


def documented(start: str) -> str:
    """The one command of docs/how-to/slurm.md that starts so."""
    (command,) = {command for command in all_documented() if command.startswith(start)}
    return command


def all_documented(page: str = "docs/how-to/slurm.md", section: str = "") -> list[str]:
    """Commands of a page, or of one of its sections alone."""
    text = (ROOT / page).read_text().partition(section)[2] if section else (ROOT / page).read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", re.split(r"^##+ ", text, flags=re.M)[0] if section else text, re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [" ".join(line.split()) for line in lines]


def command_of(process: psutil.Process) -> list[str]:
    """Empty once it has ended."""
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def missing() -> str:
    """Why there can be no cluster here, with what to do."""
    packages = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if packages:
        return f"a SLURM of its own: {INSTALL} {' '.join(packages)}"
    if os.geteuid() != 0:
        return "a SLURM of its own: run it as root, since slurmd does"
    return f"a SLURM of its own: {SYSTEM} is there, of another one" if SYSTEM.exists() and not left_behind() else ""


def left_behind() -> bool:
    """Whether the link is of tests that were killed."""
    ours = SYSTEM.is_symlink() and (SYSTEM.resolve().parent / "munge.key").exists()
    return ours and "slurmctld" not in {process.name() for process in psutil.process_iter()}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    with made(NODES, folder) as hosts:
        cluster = Cluster(folder, hosts)
        SYSTEM.unlink(missing_ok=True)
        SYSTEM.symlink_to(cluster.folder / "slurm.conf")
        try:
            cluster.start()
            yield cluster
        finally:
            SYSTEM.unlink()
            cluster.stop()


@pytest.fixture(scope="session")
def make_run(cluster: Cluster) -> Callable[..., "Run"]:
    """make_run(FOLDER, OVERLAY): a project that has run nothing yet, whose runs the cluster does."""
    return lambda folder, overlay: Run(cluster, folder, overlay)
