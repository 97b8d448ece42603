from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.fraction import file_shares, takes

FRACTIONS = [0.001, 0.01, 0.1, 0.33, 0.5, 0.99, 1.0]
FILES = [f"hf://datasets/owner/name@main/{number:04d}.tar" for number in range(37)]


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_shares_add_up_to_the_fraction(fraction):
    shares = file_shares(FILES, fraction)
    assert sum(shares.values()) == pytest.approx(fraction * len(FILES))
    assert all(0 < share <= 1 for share in shares.values())
    assert sum(share < 1 for share in shares.values()) <= 1
    assert list(shares) == [file for file in FILES if file in shares]


def test_a_larger_fraction_holds_every_smaller_one():
    for small, large in pairwise([file_shares(FILES, fraction) for fraction in FRACTIONS]):
        assert all(large[file] >= share for file, share in small.items())


@given(count=st.integers(1, 300), tenths=st.integers(1, 10))
def test_no_file_is_fetched_for_an_error_of_rounding(count, tenths):
    files = [str(number) for number in range(count)]
    assert len(file_shares(files, tenths / 10)) == -(-tenths * count // 10)


def test_the_choice_depends_on_names_alone():
    chosen = {file.rpartition("/")[2] for file in file_shares(FILES, 0.2)}
    moved = [f"data/elsewhere/{file.rpartition('/')[2]}" for file in reversed(FILES)]
    assert {file.rpartition("/")[2] for file in file_shares(moved, 0.2)} == chosen
    assert chosen != {file.rpartition("/")[2] for file in FILES[: len(chosen)]}


def test_samples_are_chosen_in_their_share_and_nested():
    names = [f"sample {number} \ud800" for number in range(4000)]
    taken = [{name for name in names if takes(name, share)} for share in (0.05, 0.3, 1.0)]
    assert [len(part) / len(names) for part in taken] == pytest.approx([0.05, 0.3, 1.0], abs=0.02)
    assert taken[0] < taken[1] < taken[2]
