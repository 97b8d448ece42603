"""What a run was made with: programs, packages and their lock, devices, commits, and the settings in full."""

import hashlib
import json
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.fingerprint import ROOT
from pipeline.report.scales import weights_in_words

LOCK = ROOT / "envs" / "requirements.lock"
LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s\\;]+)", re.MULTILINE)
View = dict[str, Any]


class Packages(NamedTuple):
    """`sha256` of the lock file, None without one; its packages as (name, locked version, version here or None)."""

    sha256: str | None
    rows: list[tuple[str, str, str | None]]

    @property
    def different(self) -> list[tuple[str, str, str | None]]:
        return [row for row in self.rows if row[1] != (row[2] or "").partition("+")[0]]  # +cpu is a build, not a version


def packages(lock: Path = LOCK) -> Packages:
    """Of the process that asks."""
    if not lock.is_file():
        return Packages(None, [])
    content = lock.read_bytes()
    pins = LOCKED.findall(content.decode("utf-8", errors="replace"))
    return Packages(hashlib.sha256(content).hexdigest(), [(name, pin, _here(name)) for name, pin in pins])


def _here(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def environment(card: View, summaries: list[View], found: Packages) -> list[tuple[str, str]]:
    """Where and with what it ran."""
    commits = dict.fromkeys(str(summary.get("git_commit") or "no checkout") for summary in summaries)
    devices = dict.fromkeys(str(summary.get("device", "–")) for summary in summaries)
    trained = dict.fromkeys(_versions(summary.get("versions")) for summary in summaries)
    return [
        ("git commit of training", ", ".join(commits)),
        ("git commit of the evaluation", str(card["git_commit"] or "no checkout")),
        ("device of training", ", ".join(devices)),
        ("device of the evaluation", card["device"]),
        ("versions in training", " | ".join(trained)),
        ("versions in the evaluation", _versions(card["versions"])),
        ("this page", f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("lock of the packages", _lock(found)),
    ]


def _versions(versions: View | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (versions or {}).items()) or "–"


def _lock(found: Packages) -> str:
    if found.sha256 is None:
        return "no envs/requirements.lock here"
    others = f"{len(found.different)} of them in another version here" if found.different else "all of them as locked here"
    return f"sha256 {found.sha256}, {len(found.rows)} packages, {others}"


def settings_of(card: View) -> list[tuple[str, str]]:
    """What one must know to get the same numbers again."""
    network, sampler, weights = card["feature_network"], card["sampler"], card["weights"]
    interval = sampler.get("interval")
    guided = f", between the noise levels {interval[0]} and {interval[1]}" if interval else ""
    drawn = f"{sampler['name']}, {sampler['steps']} steps, guidance {sampler['guidance']}{guided}, seed {sampler['seed']}"
    levels = f"{sampler['sigma_max']} to {sampler['sigma_min']}, rho {sampler['rho']}, data {sampler['sigma_data']}"
    return [
        ("weights", weights_in_words(card)),
        ("sha256 of the weights", weights["sha256"]),
        ("fingerprint of the last stage", weights["fingerprint"]),
        ("sampler", drawn),
        ("noise levels", levels),
        ("feature network", f"{network['name']}, {network['width']} features, {network['identity']}"),
        ("resizing", f"{card['resize']} to {network['input_px']} px; images as {card['image_format']}"),
        ("real images", card["reference_preparation"]),
        ("sha256 of the evaluated ids", card["ids_sha256"]),
        ("fingerprint of the evaluation", card["config_fingerprint"]),
    ]


def listings(card: View, summaries: list[View], found: Packages) -> list[tuple[str, str]]:
    """A name and a text each, to be folded away."""
    stages = [(f"configuration of stage {summary['stage']}", summary["config"]) for summary in summaries]
    evaluation = {key: value for key, value in card.items() if not key.startswith("processes")}
    chosen = [("architecture of the last stage", summaries[-1]["model"]), *stages, ("evaluation card", evaluation)]
    texts = [(name, json.dumps(value, indent=2, ensure_ascii=False)) for name, value in chosen]
    return [*texts, ("packages", "\n".join(map(_package, found.rows)))] if found.rows else texts


def _package(row: tuple[str, str, str | None]) -> str:
    name, pin, here = row
    if row not in Packages(None, [row]).different:
        return f"{name} {pin}"
    return f"{name} {pin} locked, {here or 'none'} here"
