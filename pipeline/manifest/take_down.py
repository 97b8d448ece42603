"""The file of samples that must not be trained on: a line SOURCE/KEY each, with `#` before remarks."""

import re
from collections.abc import Iterable
from pathlib import Path

from pipeline.artifacts import atomic
from pipeline.errors import UserError

SAMPLE = re.compile(r"([a-z][a-z0-9_]*)/([A-Za-z0-9_-]{1,80})")


def run(names: list[str], more: Path | None, file: Path) -> None:
    """Add `names`, and those of the file `more`, to the take-down file, and say what to do next.

    Raises: UserError, before anything is written, for what is not SOURCE/KEY, or if nothing is named.
    """
    named = [parse(name, f"take-down: '{name}'") for name in names] + (_lines(more) if more else [])
    if not named:
        raise UserError("take-down: names no sample; give SOURCE/KEY, or --from a file of them")
    new = add(file, named)
    print(f"{file}: {new} new, {len(set(named)) - new} there before")
    if new:
        print("Run snakemake again: manifests are made without them, and stages that trained on them are trained anew.")


def read(file: Path) -> dict[str, set[str]]:
    """The keys to leave out by source; none if there is no such file.

    Raises: UserError naming the line that is not SOURCE/KEY.
    """
    found: dict[str, set[str]] = {}
    for source, key in _lines(file) if file.exists() else []:
        found.setdefault(source, set()).add(key)
    return found


def add(file: Path, samples: Iterable[tuple[str, str]]) -> int:
    """Append those that the file does not have, all or none; what is in it stays as it is. Returns how many were new."""
    there = set(_lines(file)) if file.exists() else set()
    new = [sample for sample in dict.fromkeys(samples) if sample not in there]
    if new:
        before = _text(file) if file.exists() else ""
        end = "" if before.endswith("\n") or not before else "\n"
        with atomic(file) as temporary:
            lines = "".join(f"{source}/{key}\n" for source, key in new)
            temporary.write_text(before + end + lines, encoding="utf-8", newline="")
    return len(new)


def parse(text: str, where: str) -> tuple[str, str]:
    """SOURCE/KEY to (source, key). Raises: UserError that begins with `where`."""
    match = SAMPLE.fullmatch(text)
    if match is None:
        raise UserError(f"{where}: not SOURCE/KEY, such as photos/img_0001; keys stand in the ledgers and in left_out.parquet")
    return match[1], match[2]


def _lines(file: Path) -> list[tuple[str, str]]:
    lines = ((number, line.partition("#")[0].strip()) for number, line in enumerate(_text(file).splitlines(), 1))
    return [parse(line, f"{file}:{number}: '{line[:100]}'") for number, line in lines if line]


def _text(file: Path) -> str:
    try:
        with open(file, encoding="utf-8", newline="") as opened:
            return opened.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as UTF-8 text ({error}); mend it and run again") from error
