"""One GPU a job, on machines of which a fake nvidia-smi tells."""

import os
import subprocess
import sys

import pytest

from pipeline.errors import UserError
from pipeline.fingerprint import ROOT
from pipeline.gpus import gpus, one_gpu

FOUND = ["GPU-11111111-aaaa-bbbb-cccc-000000000001", "GPU-22222222-aaaa-bbbb-cccc-000000000002"]
TOLD = "".join(f"GPU {place}: NVIDIA H100 80GB HBM3 (UUID: {identifier})\n" for place, identifier in enumerate(FOUND))
PARTS = ["MIG-aaaaaaaa-1111-5555-8888-000000000001", "MIG-bbbbbbbb-1111-5555-8888-000000000002"]
DIVIDED = TOLD + "".join(f"  MIG 3g.40gb     Device  {place}: (UUID: {part})\n" for place, part in enumerate(PARTS))
JOB = """
import os, sys
from pipeline.gpus import one_gpu
with one_gpu("auto"):
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), "torch" in sys.modules, flush=True)
    sys.stdin.readline()
"""


class Machine:
    def __init__(self, folder):
        self._folder = folder
        self.environment = {**os.environ, "PATH": f"{folder}:/usr/bin:/bin", "TMPDIR": str(folder / "tmp")}
        for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK"):
            self.environment.pop(name, None)
        (folder / "tmp").mkdir()
        self.jobs = []

    def has(self, told, code=0):
        program = self._folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] || exit 9\ncat <<'END'\n{told}END\nexit {code}\n")
        program.chmod(0o755)

    def start(self, **environment):
        job = subprocess.Popen(
            [sys.executable, "-c", JOB], cwd=ROOT, env=self.environment | environment, text=True, stdin=-1, stdout=-1, stderr=-1
        )
        self.jobs.append(job)
        return job

    def end(self):
        for job in self.jobs:
            job.kill()
            job.communicate()


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    machine.has(TOLD)
    yield machine
    machine.end()


def given(job):
    identifier, torch = job.stdout.readline().split()
    assert torch == "False"
    return identifier


def test_jobs_at_the_same_time_have_different_gpus_and_the_next_waits(machine):
    jobs = [machine.start(), machine.start()]
    assert sorted(given(job) for job in jobs) == FOUND
    third = machine.start()
    assert third.stderr.readline() == "all 2 GPUs are taken by other jobs; waiting for one\n"
    freed = 1
    jobs[freed].kill()  # the GPU of a job that dies is free at once
    assert given(third) in FOUND
    fourth = machine.start()
    assert "taken" in fourth.stderr.readline()
    jobs[0].stdin.write("end\n"), jobs[0].stdin.flush()
    assert given(fourth) in FOUND


@pytest.mark.parametrize("chosen", [{"CUDA_VISIBLE_DEVICES": "7"}, {"CUDA_VISIBLE_DEVICES": ""}, {"LOCAL_RANK": "1"}])
def test_a_choice_that_was_made_stays(machine, chosen):
    job = machine.start(**chosen)
    expected = chosen.get("CUDA_VISIBLE_DEVICES", "None")
    assert job.stdout.readline().split(" ")[0] == expected
    assert not list((machine._folder / "tmp").iterdir())


@pytest.mark.parametrize("told", ["", TOLD.splitlines()[0] + "\n", "NVIDIA-SMI has failed because it couldn't communicate\n"])
def test_without_a_choice_nothing_is_done(machine, told):
    machine.has(told, code=9 if "failed" in told else 0)
    assert given(machine.start()) == "None" and not list((machine._folder / "tmp").iterdir())


def test_parts_of_a_gpu_are_handed_out_where_it_is_divided(machine):
    machine.has(DIVIDED)
    assert sorted(given(job) for job in (machine.start(), machine.start())) == PARTS


def test_this_process_sees_its_gpu_and_afterwards_all(machine, monkeypatch):
    monkeypatch.setenv("PATH", machine.environment["PATH"])
    monkeypatch.setattr("tempfile.tempdir", str(machine._folder / "tmp"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with one_gpu("cpu"):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    with one_gpu("cuda"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == FOUND[0]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    (folder,) = (machine._folder / "tmp").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(UserError, match=f"{folder}: must be a folder that this user alone can write to"), one_gpu("cuda"):
        pass


def test_no_nvidia_smi_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == []
