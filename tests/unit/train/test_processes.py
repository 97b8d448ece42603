import pytest

from pipeline.errors import Ended, UserError
from pipeline.train.processes import Processes


def as_one_of(count, rank):
    processes = Processes("cpu")
    processes.count, processes.rank, processes.is_main = count, rank, rank == 0
    return processes


@pytest.mark.parametrize(("batch", "count"), [(24, 1), (24, 2), (25, 4), (7, 7)])
def test_shares_are_contiguous_even_and_complete(batch, count):
    shares = [as_one_of(count, rank).share(batch) for rank in range(count)]
    assert [first for first, _ in shares] == [sum(size for _, size in shares[:rank]) for rank in range(count)]
    sizes = [size for _, size in shares]
    assert sum(sizes) == batch and max(sizes) - min(sizes) <= 1


def test_a_batch_too_small_for_the_processes_is_a_user_error():
    with pytest.raises(UserError, match=r"batch_images: 3 images cannot be shared by 4 processes"):
        as_one_of(4, 0).share(3)


def test_only_the_first_process_speaks():
    assert str(as_one_of(2, 0).ended("stopped").code) == "stopped"
    silent = as_one_of(2, 1).ended("stopped")
    assert isinstance(silent, Ended) and silent.code == 1


def test_one_process_agrees_with_itself():
    processes = Processes("cpu")
    assert [processes.agree(code) for code in (0, 3)] == [0, 3]
