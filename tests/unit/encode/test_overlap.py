import threading
import time

import pytest

from pipeline.encode.overlap import DEPTH, Behind, Clock, ahead


def test_ahead_gives_the_values_in_order_and_is_only_so_far_ahead() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number * number

    values = ahead(make, range(20), depth=3)
    assert next(values) == 0
    time.sleep(0.05)
    assert len(made) <= 4 and [*values] == [n * n for n in range(1, 20)] and made == list(range(20))


def test_an_error_comes_where_its_value_would() -> None:
    values = ahead(lambda n: 6 // n, [3, 2, 0, 1])
    assert [next(values), next(values)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_behind_does_all_in_order_in_one_other_thread() -> None:
    done: list[int] = []
    threads = set()

    def work(number: int) -> None:
        time.sleep(0.001)
        threads.add(threading.get_ident())
        done.append(number)

    with Behind() as behind:
        for number in range(20):
            behind(work, number)
            assert len(done) >= number - DEPTH
    assert done == list(range(20)) and len(threads) == 1 and threading.get_ident() not in threads


def test_what_fails_behind_is_raised_at_the_latest_at_the_end() -> None:
    with pytest.raises(ZeroDivisionError), Behind() as behind:
        behind(lambda: 1 // 0)
    later = []
    with pytest.raises(ZeroDivisionError), Behind() as behind:
        for _ in range(DEPTH + 1):
            behind(lambda: 1 // 0)
        later.append(1)
    assert not later


def test_an_error_in_front_is_not_hidden_by_one_behind() -> None:
    with pytest.raises(KeyError), Behind() as behind:
        behind(lambda: 1 // 0)
        raise KeyError


def test_a_clock_shares_out_the_time() -> None:
    clock = Clock()

    def slow():
        for number in range(3):
            time.sleep(0.01)
            yield number

    for _ in clock.waited("waiting", slow()):
        with clock("working"):
            time.sleep(0.03)
    assert 0 < clock.share("waiting") < clock.share("working")
    assert clock.share("waiting") + clock.share("working") == pytest.approx(1) and Clock().share("waiting") == 0
