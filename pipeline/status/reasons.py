"""Why a job would run again, for people: which keys of the configuration changed, and from what to what."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from pipeline.config.schema import FrozenModels
from pipeline.status.dry_run import Job

FINGERPRINT = re.compile(r"[0-9a-f]{12}")
NOTHING = "<nothing exclusive>"
UNSET = "not set"
PARAMS = "Params have changed since last execution: "
FILES = {  # how Snakemake begins -> in short
    "Missing output files: ": "missing",
    "Incomplete output files: ": "interrupted",
    "Updated input files: ": "input changed",
}
MADE_AGAIN = "Input files updated by another job: "
OTHERS = {
    "Set of input files has changed since last execution": "other input files",
    "Code has changed since last execution": "the rule's command changed",
    "Software environment definition has changed since last execution": "other software environment",
    "Forced execution": "forced",
}
KEYS = {  # of slices whose names are not those of the configuration
    "px": "stages.{stage}.px",
    "mode": "sources.{source}.caption",
    "all_captions": "sources.{source}.all_captions",
    "held_out": "validation.share",
}


def why(job: Job, made_by: Mapping[str, str]) -> list[str]:
    """Reasons in the order Snakemake gives them. `made_by`: file -> label of the job that makes it."""
    return list(dict.fromkeys(_why(job, made_by)))


def _why(job: Job, made_by: Mapping[str, str]) -> Iterator[str]:
    before, params, now = job.reason.partition(PARAMS)
    for part in filter(None, before.strip("; ").split("; ")):
        start = next((start for start in FILES if part.startswith(start)), "")
        if start:
            yield f"{FILES[start]}: {_listed(part.removeprefix(start).split(', '))}"
        elif part.startswith(MADE_AGAIN):
            files = part.removeprefix(MADE_AGAIN).split(", ")
            yield f"below {_listed(sorted({made_by.get(file, file) for file in files}))}"
        else:
            yield OTHERS.get(part, part)
    if params:
        yield from _changes(job, now)


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:2])} and {len(names) - 2} more" if len(names) > 3 else ", ".join(names)


def _changes(job: Job, text: str) -> Iterator[str]:
    """Of `Union of … before: A,B now: C`, A to C being Python literals."""
    old, new = map(_by_kind, _sides(text.partition("before: ")[2]))
    if old["code"] or new["code"]:
        yield "what the code of the step does changed"
    for before, now in zip_longest(old["slice"], new["slice"], fillvalue="{}"):
        yield from _keys(job, json.loads(before), json.loads(now))
    if old["other"] or new["other"]:
        yield " -> ".join(", ".join(map(_short, side["other"])) or UNSET for side in (old, new))


def _by_kind(values: list[Any]) -> dict[str, list[Any]]:
    """Params as fingerprints of code, slices of the configuration, and others."""
    kinds: dict[str, list[Any]] = {"code": [], "slice": [], "other": []}
    for value in values:
        texts = value if isinstance(value, list) and value else [value]
        if all(isinstance(text, str) and FINGERPRINT.fullmatch(text) for text in texts):
            kinds["code"].append(value)
        else:
            kinds["slice" if isinstance(value, str) and value.startswith("{") else "other"].append(value)
    return kinds


def _sides(text: str) -> tuple[list[Any], list[Any]]:
    """Literals before and now. A text among them may hold the word between the two, so it is tried where it stands."""
    for found in re.finditer(" now: ", text):
        try:
            return _literals(text[: found.start()]), _literals(_without_rest(text[found.end() :]))
        except (SyntaxError, ValueError):
            continue
    return [], []


def _without_rest(text: str) -> str:
    """Without what Snakemake says behind the params."""
    return text.removesuffix("; Software environment definition has changed since last execution")


def _literals(text: str) -> list[Any]:
    return [] if text.strip() == NOTHING else ast.literal_eval(f"[{text.strip()}]")


def _keys(job: Job, before: Any, now: Any, key: str = "") -> Iterator[str]:
    """Keys that differ, down to those of which both sides have a value."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            inner = f"{key}.{name}" if key else name
            yield from _keys(job, before.get(name, UNSET), now.get(name, UNSET), inner)
    elif before != now:
        yield f"{_named(key, job)}: {_short(before)} -> {_short(now)}"


def _named(key: str, job: Job) -> str:
    """A key of a slice as the configuration names it."""
    top, dot, rest = key.partition(".")
    if top in ("stage", "source") and dot and top in job.wildcards:
        return f"{top}s.{job.wildcards[top]}.{rest}"
    if top in FrozenModels.model_fields:
        return f"models.{key}"
    if job.rule == "report":
        return f"report.{key}"
    return KEYS[key].format_map(job.wildcards) if key in KEYS else key


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
