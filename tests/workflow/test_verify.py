"""Damaged files are named, set aside and made again: they alone, and what is below them only where that differs."""

import os
from collections import Counter

TAR, SIDECAR = "results/data/scenes/00000.tar", "results/data/scenes/00000.json"
ENCODED = "results/encoded/scenes_synthetic/00000.json"


def _flip(file):
    """Change one byte, in place."""
    with open(file, "r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        byte = opened.read(1)[0]
        opened.seek(-1, 1)
        opened.write(bytes([byte ^ 1]))


def _repair(project):
    """The targets of the command that `verify --repair` prints."""
    done = project.pipeline("verify", "--repair")
    assert done.returncode == 0, done.stderr
    (command,) = [line for line in done.stdout.splitlines() if line.startswith("  snakemake ")]
    return command.partition(" -- ")[2].split()


def _make(project, targets):
    done = project.snakemake("--rerun-incomplete", "--", *targets)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_damaged_shards_are_made_again_and_nothing_else(clone):
    latents = next((clone.folder / "results/latents/scenes_synthetic").glob("64-*/00000.arrow"))
    other = next((clone.folder / "results/latents/scenes_synthetic").glob("32-*/00000.arrow"))
    whole = {file: file.read_bytes() for file in (clone.folder / TAR, latents)}
    kept = other.stat().st_ino
    for file in whole:
        _flip(file)
    assert not clone.planned()  # Snakemake sees the sidecars alone
    found = clone.pipeline("verify")
    assert found.returncode == 1 and TAR in found.stdout and str(latents.relative_to(clone.folder)) in found.stdout

    assert _repair(clone) == [SIDECAR, ENCODED]
    assert clone.planned(target=SIDECAR) == Counter({"collect": 1})
    assert clone.planned(target=ENCODED) == Counter({"encode": 1})
    _make(clone, [SIDECAR, ENCODED])
    assert {file: file.read_bytes() for file in whole} == whole and other.stat().st_ino == kept
    assert clone.pipeline("verify").returncode == 0
    assert not clone.planned()


def test_damaged_weights_are_trained_again_from_the_checkpoint_before_to_the_same_bits(clone):
    weights = clone.folder / "results/train/low_masked/ema.safetensors"  # of 64 images, with a checkpoint at 32
    (last,) = (clone.folder / "results/work/train/low_masked").glob("*/000000000064/ema.safetensors")
    weights.unlink()
    os.link(last, weights)  # as training does; a copy of the project has two files
    whole = weights.read_bytes()
    _flip(weights)
    assert _repair(clone) == ["results/train/low_masked/summary.json"]
    _make(clone, ["results/train/low_masked/summary.json"])
    assert weights.read_bytes() == whole
    assert " 50% 32/64 images" in (clone.folder / "results/logs/train/low_masked.log").read_text()
    assert clone.pipeline("verify").returncode == 0
