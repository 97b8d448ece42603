"""What many processes make of a stage, where it takes longer than a unit test may."""

import os
import re
import shlex
import signal

import pytest

from tests.jobs import Launcher
from tests.training import Trainer, ends, wait_until
from tests.workflow.conftest import Project


def test_shards_on_more_processes_than_experts(warmed):
    assert warmed.run("fsdp4", 4, parallel="fsdp") == {}
    assert warmed.summary("fsdp4")["parallel"] == "fsdp"


def test_a_run_passes_between_all_kinds_and_numbers_of_processes(warmed):
    assert warmed.relay("round", ("ddp", 1), ("fsdp", 2), ("ddp", 4), ("fsdp", 4), ("ddp", 2)) == {}
    assert warmed.relay("to-shards", ("ddp", 1), ("fsdp", 2)) == {}


@pytest.mark.parametrize(
    "launcher",
    [("torchrun", "--standalone", "--nproc-per-node", "2"), ("accelerate", "launch", "--multi_gpu", "--num_processes", "2")],
    ids=["torchrun", "accelerate"],
)
def test_launchers(warmed, launcher):
    assert warmed.launch(launcher[0], Launcher(*launcher)) == {}
    assert warmed.summary(launcher[0])["processes"] == 2


def test_accelerate_on_a_cpu_says_that_it_starts_one_process(vae, tmp_path, slice_of, toy):
    trainer = Trainer(Launcher("accelerate", "launch", "--cpu", "--num_processes", "2"), vae, tmp_path)
    trainer.run(slice_of(images=24), toy, expect=1)
    assert "error: accelerate launch --cpu starts one process" in trainer.log().read_text()


@pytest.fixture
def rule(tmp_path):
    """The launcher of the rule for two GPUs, a minute to save."""
    project = Project(tmp_path / "project")
    overlay = project.overlay("two.yaml", "runtime: {gpus: 2, signal_lead_seconds: 60}")
    done = project.snakemake("--dry-run", "--printshellcmds", "--", "all", overlays=("tests/workflow/smoke.yaml", overlay))
    commands = re.findall(r"(torchrun .*?) -m pipeline train", done.stdout)
    assert commands, done.stdout + done.stderr
    return shlex.split(commands[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_launcher_of_the_rule_saves(vae, tmp_path, slice_of, toy, rule, number):
    assert rule[rule.index("--nproc-per-node") + 1] == "2" and rule[rule.index("--shutdown-timeout") + 1] == "60"
    trainer = Trainer(Launcher(*rule), vae, tmp_path)
    process = trainer.start(slice_of(images=240_000), toy, checkpoint_every_images=240_000, samples_every_images=240_000)
    wait_until(process, lambda: trainer.measured() > 0)
    os.kill(process.pid, number)
    assert ends([process]) != [0] and trainer.newest() > 0
    assert f"stopped by {number.name} at {trainer.newest()} images" in trainer.log().read_text()
