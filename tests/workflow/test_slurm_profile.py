"""The profile of SLURM, as far as that needs no SLURM; the rest is in tests/slurm."""

import re
import subprocess

import pytest
import yaml

from pipeline.config import load
from pipeline.fingerprint import ROOT
from tests.slurm.conftest import INSTALL, PROGRAMS, all_documented, documented

FOLDER = ROOT / "workflow/profiles/slurm"
PROFILE, SITE = (yaml.safe_load((FOLDER / name).read_text()) for name in ("profile.yaml", "site.yaml.example"))
SMOKE = "tests/workflow/smoke.yaml"


def uncommented():
    """The site's example with every line that a user may want."""
    lines = (FOLDER / "site.yaml.example").read_text().splitlines()
    return yaml.safe_load("\n".join(re.sub(r"^( *)# (?=[\w-]+: )", r"\1", line) for line in lines))


def test_the_page_has_no_command_but_those_that_are_run():
    copied, run = documented("cp "), documented("snakemake --profile")  # tests/slurm runs these two as they are
    others = [". .venv/bin/activate", f"sudo {INSTALL} {' '.join(PROGRAMS.values())}", "make test-slurm"]
    assert sorted(all_documented()) == sorted([copied, run, *others])


def test_the_readme_has_the_same_commands():
    assert all_documented("README.md", "### A cluster\n") == [documented("cp "), documented("snakemake --profile")]


def test_no_key_stands_in_both():
    assert not PROFILE.keys() & uncommented().keys()  # that of the site would not be read


def test_the_rules_they_name_are_there(project):
    rules = set(project.snakemake("--list-rules").stdout.split())
    named = {*PROFILE["set-threads"], *PROFILE["slurm-array-jobs"].split(","), *uncommented()["set-resources"]}
    assert "train" in named and named <= rules


def test_more_jobs_than_shards_of_the_largest_run():
    """Jobs of an array that are beyond the number at once are never sent by the plugin, and it waits for them for ever."""
    paper = load(ROOT / "config.yaml", ROOT / "workflow/presets/paper.yaml")
    assert PROFILE["jobs"] > sum(source.shards for source in paper.sources.values()) > 1000


def resources(project, *overlays):
    """The requests of each rule's jobs."""
    done = project.snakemake("--dry-run", "--workflow-profile", "none", "--", "all", overlays=(SMOKE, *overlays))
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for rule, asked in re.findall(r"^rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", done.stdout, re.M):
        found.setdefault(rule, set()).add(asked)
    return found


def test_jobs_of_an_array_ask_for_the_same(project):
    """The plugin asks for all what the first asks for."""
    captioner = "models: {captioner: hf:someone/captioner@0123456789}\nruntime: {gpus: 1, sample_shards: 3}"
    asked = resources(project, project.overlay("captioner.yaml", captioner))
    assert len(asked["caption"]) > 1
    for rule in PROFILE["slurm-array-jobs"].split(","):
        assert len(asked.get(rule, {1})) == 1, rule


@pytest.mark.parametrize(
    ("runtime", "wanted", "mb"),
    [
        ("{gpus: 2}", "nodes=1, gpu=2", 64000),
        ("{gpus: 4, nodes: 2}", "nodes=2, gpu=8", 128000),
    ],
)
def test_training_asks_for_its_nodes_and_all_their_gpus(project, runtime, wanted, mb):
    (asked,) = resources(project, project.overlay("my.yaml", f"runtime: {runtime}"))["train"]
    assert wanted in asked and f"mem_mb={mb}," in asked
    assert ("mpi=srun, tasks=2, tasks_per_gpu=0" in asked) == ("nodes=2" in asked)


def test_nodes_and_gpus_cause_no_rerun(clone):
    assert not clone.planned(clone.overlay("my.yaml", "runtime: {gpus: 4, nodes: 2}"))


def test_several_nodes_without_slurm_are_one_line(project):
    overlay = project.overlay("my.yaml", "runtime: {gpus: 4, nodes: 2}")
    done = project.snakemake(
        "--dry-run", "--printshellcmds", *("--cores", "8", "--max-threads", "8"), "--", "all", overlays=(SMOKE, overlay)
    )
    (launch,) = set(re.findall(r"(srun .*?) -m pipeline train", done.stdout))
    assert launch.startswith(
        "srun --nodes 2 --ntasks 2 --ntasks-per-node 1 --cpus-per-task 8 --gpus-per-node 4 torchrun --nproc-per-node 4"
    )
    expanded = subprocess.run(["bash", "-c", f"echo {launch}"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert expanded.returncode != 0
    assert "SLURM_JOB_ID: is not set: runtime.nodes above 1 needs a job of SLURM" in expanded.stderr
    expanded = subprocess.run(
        ["bash", "-c", f"echo {launch}"], env={"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "1234567"}, capture_output=True, text=True
    )
    assert re.search(r"--nnodes 2 --rdzv-backend c10d --rdzv-id 1234567 --rdzv-endpoint \S+:24567$", expanded.stdout)
