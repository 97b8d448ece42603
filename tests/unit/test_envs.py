"""The lock and what is made from it."""

import importlib.util
import re

import pytest
from packaging.requirements import Requirement

from pipeline.fingerprint import ROOT

LOCK = (ROOT / "envs/requirements.lock").read_text(encoding="utf-8")
PINS = [Requirement(line.rstrip(" \\")) for line in LOCK.splitlines() if line[:1].isalpha()]
ASKED = [line.split("#")[0].strip() for line in (ROOT / "envs/requirements.in").read_text().splitlines()]


@pytest.mark.parametrize("asked", [Requirement(line) for line in ASKED if line], ids=str)
def test_what_is_asked_for_is_locked_at_a_version_that_fits(asked):
    name = asked.name.replace("_", "-").lower()
    versions = [next(iter(pin.specifier)).version for pin in PINS if pin.name.lower() == name]
    assert versions and all(asked.specifier.contains(version) for version in versions)


@pytest.mark.parametrize("lock", ["requirements.lock", "installer.lock"])
def test_every_pin_is_exact_and_has_hashes_and_no_address(lock):
    text = (ROOT / "envs" / lock).read_text(encoding="utf-8")
    assert not re.search(r"https?://|--(extra-)?index|--find-links|file:", text)
    blocks = re.split(r"(?m)^(?=[a-z0-9])", text)
    for block in filter(str.strip, blocks):
        assert re.match(r"[a-z0-9._-]+==\S+", block) and "--hash=sha256:" in block, block[:80]


def test_the_conda_file_is_in_step_with_the_lock():
    spec = importlib.util.spec_from_file_location("make_conda", ROOT / "envs/make_conda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "envs/pipeline.yaml").read_text(encoding="utf-8") == module.environment(LOCK), "run `make generated`"
