"""Work that goes on while the encoder computes: made ahead of it, or done behind it, in one thread and in order."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

DEPTH = 2  # pieces of work under way beside the encoder's: bounds the memory

Item, Value = TypeVar("Item"), TypeVar("Value")


def _compute_alone() -> None:
    """Torch without helpers in this thread: with some of its own, OpenMP would run more threads than there are cores."""
    import torch

    torch.set_num_threads(1)


def ahead(make: Callable[[Item], Value], items: Iterable[Item], depth: int = DEPTH) -> Iterator[Value]:
    """`map(make, items)` with up to `depth` values made beforehand by a thread. Errors come where their value would."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead", initializer=_compute_alone) as thread:
        yield from in_order((thread.submit(make, item) for item in items), depth)


def in_order(futures: Iterator[Future[Value]], depth: int) -> Iterator[Value]:
    """Results of work as it was submitted; `depth` pieces are submitted beyond the one that is asked for."""
    pending: deque[Future[Value]] = deque()
    try:
        for future in futures:
            pending.append(future)
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # the consumer stopped: what has not begun need not
        for future in pending:
            future.cancel()


class Behind:
    """A thread that does what it is given, in order, at most DEPTH pieces behind. Errors come at the next call or at the
    end of the block."""

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="behind", initializer=_compute_alone)
        self._pending: deque[Future[None]] = deque()
        return self

    def __call__(self, work: Callable[..., None], *arguments: Any) -> None:
        self._pending.append(self._thread.submit(work, *arguments))
        while len(self._pending) > DEPTH:
            self._pending.popleft().result()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._thread:
            while self._pending and error is None:
                self._pending.popleft().result()
            for future in self._pending:
                future.cancel()


class Clock:
    """Seconds of the thread that encodes, by what it did."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - started

    def waited(self, what: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the time until each comes counts as `what`."""
        iterator = iter(items)
        while True:
            with self(what):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def share(self, what: str) -> float:
        return self.seconds[what] / (sum(self.seconds.values()) or 1.0)
