import threading
from collections.abc import Iterator

import pytest

from pipeline.caption.ahead import ahead


def test_items_come_in_order() -> None:
    assert list(ahead(range(100), 3)) == list(range(100))
    assert list(ahead([], 3)) == []


def test_the_thread_is_as_far_ahead_as_it_may() -> None:
    made = []
    taken = ahead((made.append(number) or number for number in range(20)), 3)
    for expected in range(2):
        assert next(taken) == expected
    taken.close()  # waits for what was begun
    assert made == [0, 1, 2, 3, 4]


def test_items_are_made_by_another_thread_while_one_is_in_use() -> None:
    """Each item waits until the one before is in use: without a thread this would never end."""
    used = [threading.Event() for _ in range(5)]

    def items() -> Iterator[int]:
        for number in range(5):
            assert number == 0 or used[number - 1].wait(10)
            yield number

    for number in ahead(items(), 1):
        used[number].set()


def test_an_error_is_raised_at_its_place() -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise ValueError("broken")

    taken = ahead(items(), 5)
    assert [next(taken), next(taken)] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(taken)


def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    taken = ahead(range(100), 3)
    next(taken)
    taken.close()
    assert threading.active_count() == before
