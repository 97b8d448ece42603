"""Where and how a step runs: device, progress, signals, and the record of what a process cost."""

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

import psutil
from tqdm import tqdm

from pipeline.artifacts import write_json
from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch


def pick_device(wanted: str) -> "torch.device":
    """`auto` is CUDA, then MPS, then the CPU. Raises: UserError if a device that was asked for is not there."""
    import torch

    found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if wanted in ("auto", "cpu", found):
        return torch.device(found if wanted == "auto" else wanted)
    raise UserError(f"runtime.device: '{wanted}' is not available on this machine, found {found}; use auto")


def pick_precision(wanted: str, device: "torch.device") -> "torch.dtype":
    """Autocast type. bfloat16 products are slow on CPUs without AVX-512, so `auto` takes it on CUDA alone."""
    import torch

    return torch.bfloat16 if wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda") else torch.float32


def device_name(device: "torch.device") -> str:
    """Marketing name of a GPU, or the CPU's model and thread count."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"


class _Lines:
    """Turns tqdm's carriage returns into lines, for logs and pipes.

    Once nobody reads the pipe, lines are let go: a signal to a process group (Ctrl-C, a batch system) ends the `tee`
    behind a step before the step has saved its work.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            with suppress(BrokenPipeError):
                self._stream.write(line + "\n")

    def flush(self) -> None:
        with suppress(BrokenPipeError):
            self._stream.flush()


@contextmanager
def progress(what: str, total: int, unit: str = "images", initial: int = 0, shown: bool = True) -> Iterator[tqdm]:
    """A progress bar on a terminal, a line every few seconds in a log. `bar.update(n)` counts on from `initial`."""
    terminal = sys.stderr.isatty()
    bar = tqdm(
        desc=what,
        total=total,
        initial=initial,
        disable=not shown,
        unit=f" {unit}",
        file=sys.stderr if terminal else _Lines(sys.stderr),
        position=None if terminal else 0,  # one within another moves the cursor, which is no line of a log
        mininterval=0.2 if terminal else 5.0,
        bar_format="{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt}{unit}, {rate_fmt}, {remaining} left{postfix}",
        dynamic_ncols=terminal,
    )
    with bar:
        yield bar


def minutes_left(minutes: float | None) -> float | None:
    """Of the time given to this process. A job's clock runs also while its process starts, and waits for another one."""
    age = max(0.0, time.time() - psutil.Process().create_time())
    return None if minutes is None else minutes - age / 60


class StopRequest:
    """Set by SIGTERM, SIGUSR1, SIGINT or a deadline; a long step asks `reason()` where it can stop and save.

    A deadline comes `lead_seconds`, at most a tenth of it, before the time given, to leave room for saving.
    """

    def __init__(self, deadline_minutes: float | None = None, lead_seconds: float = 300.0) -> None:
        self._reason: str | None = None
        seconds = None if deadline_minutes is None else 60 * deadline_minutes
        self._ends = None if seconds is None else time.monotonic() + seconds - min(lead_seconds, 0.1 * seconds)
        for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
            signal.signal(getattr(signal, name), self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._reason = signal.Signals(number).name

    def reason(self) -> str | None:
        """Why to stop now, or None."""
        if self._reason is None and self._ends is not None and time.monotonic() >= self._ends:
            self._reason = "deadline"
        return self._reason


@contextmanager
def process_record(step: str, name: str, folder: Path) -> Iterator[None]:
    """Note seconds, peak memory and whether torch was loaded, as {folder}/{step}-{name}.json, when the step succeeds.

    Of several processes that do one step together only the first does.
    """
    started, begun = psutil.Process().create_time(), time.monotonic()
    age = max(0.0, time.time() - started)  # from here on without the wall clock, which somebody may set
    yield
    if os.environ.get("RANK", "0") != "0":
        return
    record: dict[str, Any] = {
        "step": step,
        "name": name,
        "started": round(started, 1),
        "seconds": round(age + time.monotonic() - begun, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "imports": [m for m in ("torch", "diffusers", "transformers") if m in sys.modules],
    }
    write_json(folder / f"{step}-{name.replace('/', '-')}.json", record)
