"""Work done ahead of its use."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
END = object()


def ahead(items: Iterable[Item], room: int) -> Iterator[Item]:
    """The same items in the same order, made by a thread that is at most `room` of them ahead. What it raises is raised
    here, at its place."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        pending = deque(thread.submit(next, iterator, END) for _ in range(room))
        while (item := pending.popleft().result()) is not END:
            pending.append(thread.submit(next, iterator, END))
            yield item
