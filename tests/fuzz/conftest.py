"""Fuzzing: a parser is given damaged forms of files that are right, in a process of its own with little memory.

The mutations are drawn by Hypothesis, round after round with seeds 0, 1, 2 …, until the time is over. An example may
succeed, or fail with the error that the parser documents; anything else is a defect, which is shown with its seed.
"""

import json
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.ledger import Unusable

SECONDS = 10  # a parser, unless told otherwise
PATIENCE = 20  # seconds an example may take, on a machine that has much else to do
ROOM = 3 * 2**30  # bytes a parser may ask for, over what the process has
HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, -1, 0)
HOSTILE = [
    *(None, True, False, *HUGE, 10**400, 1e308, float("nan"), float("inf"), "", " ", "x" * 100_000, "\ud800", "\0", "a\nb"),
    *("../../../etc/passwd", "/etc/passwd", "$(touch made)", "`x`", "ü\u202e\u200b", [], {}, [[[[]]]], [None] * 1000, {"": {}}),
]
Mutation = tuple[str, float, float, bytes]

Check = Callable[[bytes, Path], Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seconds", type=float, default=SECONDS, help="for each parser, whatever formats it reads")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """However long is asked for, pytest's own limit comes after."""
    patience = config.getoption("--fuzz-seconds", default=SECONDS) + 10 * PATIENCE
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(patience))


KINDS = ("flip", "cut", "drop", "double", "overwrite", "insert")
MUTATIONS = st.tuples(st.sampled_from(KINDS), st.floats(0, 1), st.floats(0, 1), st.binary(min_size=1, max_size=16))


def mutated(data: bytes, kind: str, place: float, length: float, payload: bytes) -> bytes:
    """Damage in one place. `place` and `length` are shares, of the file and of at most 4 KB."""
    at = min(int(place * len(data)), max(0, len(data) - 1))
    end = at + 1 + int(length**3 * min(4096, len(data) - at))
    if kind == "flip":
        return data[:at] + bytes(byte ^ (1 << payload[0] % 8) for byte in data[at : at + 1]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    middle = {"drop": b"", "double": data[at:end] * (2 + payload[0] % 3), "overwrite": payload, "insert": payload + data[at:end]}
    return data[:at] + middle[kind] + data[end if kind != "overwrite" else at + len(payload) :]


@st.composite
def damaged(draw: st.DrawFn, valid: list[bytes]) -> bytes:
    """One of the valid files with one to four mutations."""
    data = draw(st.sampled_from(valid))
    for mutation in draw(st.lists(MUTATIONS, min_size=1, max_size=4)):
        data = mutated(data, *mutation)
    return data


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths of all values within a JSON, the whole one first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in places(item, (*path, key)))]


def replaced(value: Any, path: tuple, change: Callable[[Any], Any]) -> Any:
    """The JSON with `change` made at a path; a value that becomes `...` is dropped."""
    if not path:
        return change(value)
    items = dict(value.items() if isinstance(value, dict) else enumerate(value))
    items[path[0]] = replaced(items[path[0]], path[1:], change)
    items = {key: item for key, item in items.items() if item is not ...}
    return items if isinstance(value, dict) else list(items.values())


@st.composite
def spliced(draw: st.DrawFn, valid: list[bytes]) -> bytes:
    """A JSON file, or lines of them, with one to three values replaced, dropped, nested deeply, or given to another key."""
    lines = _documents(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(lines) - 1))
        found = places(lines[number])
        path, other = (found[draw(st.integers(0, len(found) - 1))] for _ in range(2))
        taken: list[Any] = []
        replaced(lines[number], other, taken.append)
        change = draw(st.sampled_from([*HOSTILE, ..., taken[0], "deep", "key"]))
        if change == "key" and path and isinstance(path[-1], str):
            lines[number] = replaced(lines[number], path[:-1], lambda value, key=path[-1]: _renamed(value, key))
        elif change is not ... or path:
            lines[number] = replaced(lines[number], path, lambda value, change=change: change)
    text = "\n".join(json.dumps(line) for line in lines)
    return text.replace('"deep"', "[" * 20_000 + "]" * 20_000, 1).encode()


def _documents(data: bytes) -> list[Any]:
    try:
        return [json.loads(data)]
    except ValueError:
        return [json.loads(line) for line in data.splitlines()]


def _renamed(value: dict[str, Any], key: str) -> dict[str, Any]:
    return {(f"{name}x" if name == key else name): item for name, item in value.items()}


def _limited(check: Check, strategy: st.SearchStrategy[bytes], seconds: float, folder: Path, answer: Connection) -> None:
    """Runs in the process of its own. Sends how many examples there were, or what went wrong."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, lambda *_: _give_up(answer, folder))
    ends, tried, number = time.monotonic() + seconds, 0, 0

    def one(data: bytes) -> None:
        nonlocal tried
        tried += 1
        (folder / "last").write_bytes(data)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            check(data, folder)
        except (UserError, Unusable) as error:
            assert str(error).strip(), "an error without a word"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    rules = dict(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False)
    rules |= dict(phases=(Phase.generate, Phase.shrink), report_multiple_bugs=False)
    try:
        while time.monotonic() < ends:
            seed(number)(settings(**rules)(given(data=strategy)(one)))()
            number += 1
        answer.send(tried)
    except BaseException:
        answer.send(f"with seed {number}, in {folder / 'last'}:\n{traceback.format_exc()}")


def _give_up(answer: Connection, folder: Path) -> None:
    """At once: to look for a smaller example that hangs would take as long again for every try."""
    answer.send(f"takes longer than {PATIENCE} seconds, with {folder / 'last'}:\n{''.join(traceback.format_stack()[-12:])}")
    os._exit(1)


@pytest.fixture
def fuzz(request, tmp_path, capsys):
    """fuzz(valid files, check, by=damaged, spliced …): `check(data, folder)` is given what the strategies make of them.

    The formats that one parser reads share its time.
    """
    formats = sum((item.path, item.originalname) == (request.path, request.node.originalname) for item in request.session.items)
    seconds = request.config.getoption("--fuzz-seconds", default=SECONDS) / formats

    def go(valid: list[bytes], check: Check, *by: Callable[[list[bytes]], st.SearchStrategy[bytes]]) -> None:
        for data in valid:
            check(data, tmp_path)  # as it is, it is right
        strategy = st.one_of(*(make(valid) for make in by or (damaged,)))
        ours, theirs = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_limited, args=(check, strategy, seconds, tmp_path, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            found = ours.recv() if ours.poll(seconds + 5 * PATIENCE) else "does not come back"
        except EOFError:
            found = "dies"
        process.kill()
        process.join()
        assert isinstance(found, int), f"{found} (exit code {process.exitcode}, example {tmp_path / 'last'})"
        assert found > 10, f"{found} examples in {seconds} seconds"
        with capsys.disabled():
            print(f" {found} examples", end="")

    return go
