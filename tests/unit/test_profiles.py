"""Which options a plain `snakemake` has, and what another profile leaves of them."""

import pytest
from snakemake.cli import parse_args

from pipeline.fingerprint import ROOT

TARGET = ["--cores", "2", "--", "results/fid_coco.json"]


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def options(*arguments):
    return parse_args([*arguments, *TARGET])[1]


@pytest.mark.parametrize("given", [(), ("--workflow-profile", "workflow/profiles/default")])
def test_the_default_profile_is_found_and_may_be_named(given):
    found = options(*given)
    assert found.nolock and found.rerun_incomplete and found.show_failed_logs
    assert found.executor is None and found.resources["gpu"].value == 1 and found.targets == TARGET[-1:]


def test_the_number_of_gpus_may_be_given():
    assert options("--resources", "gpu=8").resources["gpu"].value == 8


def test_the_cluster_s_profile_takes_its_place_with_the_cap_on_gpus():
    found = options("--workflow-profile", "workflow/profiles/slurm")
    assert found.executor == "slurm" and found.nolock and found.rerun_incomplete
    assert "gpu" not in found.resources


def test_none_is_none():
    found = options("--workflow-profile", "none")
    assert not found.nolock and not found.rerun_incomplete
