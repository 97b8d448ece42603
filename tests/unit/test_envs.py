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


def installing(text):
    """The commands in a file that install packages, in their order."""
    return re.findall(r"(?:uv )?pip install [^\n]*?-r envs/\S+\.lock", text)


@pytest.mark.parametrize("recipe", ["Containerfile", "shoestring.def"])
def test_containers_are_made_by_the_commands_of_the_makefile(recipe):
    text = (ROOT / "envs" / recipe).read_text(encoding="utf-8")
    wanted = installing((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(wanted) == 2 and installing(text) == wanted
    assert all(re.search(rf"envs/{lock}\b", text.split("pip install")[0]) for lock in ("installer.lock", "requirements.lock"))


def test_containers_have_the_same_base_of_the_python_that_the_lock_is_for():
    bases = {
        re.search(r"^ARG BASE=docker\.io/library/(\S+)$", (ROOT / "envs/Containerfile").read_text(), re.M)[1],
        re.search(r"^From: (\S+)$", (ROOT / "envs/shoestring.def").read_text(), re.M)[1],
    }
    python = re.search(r"--python-version (\S+)", (ROOT / "Makefile").read_text())[1]
    assert len(bases) == 1 and bases.pop().startswith(f"python:{python}-")


def test_the_container_runs_as_a_user_and_holds_no_secret():
    text = (ROOT / "envs/Containerfile").read_text()
    assert re.findall(r"^USER (\S+)$", text, re.M)[-1] not in ("root", "0")
    assert not re.search(r"token|password|secret|^ADD |https?://", text, re.M | re.I)


def test_the_rules_name_the_image_that_the_recipe_says_to_build():
    image = re.search(r'^container: "(\S+)"', (ROOT / "Snakefile").read_text(), re.M)[1]
    assert f"apptainer build {image} envs/shoestring.def" in (ROOT / "envs/shoestring.def").read_text()
    assert image in (ROOT / "docs/how-to/containers.md").read_text() and image in (ROOT / ".gitignore").read_text().split()
