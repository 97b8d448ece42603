import math

import pytest
import torch

from pipeline.engine.guard import HISTORY, Guard

NAN, INF = float("nan"), float("inf")


def guard(norms=(), factor=20.0):
    made = Guard(factor, torch.device("cpu"))
    assert not any(skips(made, norms))
    return made


def skips(guard, norms):
    answers = [guard.skips(torch.tensor(norm)) for norm in norms]
    assert all(answer.dtype == torch.float32 and answer.shape == () for answer in answers)
    return [answer.item() for answer in answers]


def wavering(count, size=1.0):
    return [size * (1 + 0.3 * math.sin(step)) for step in range(count)]


@pytest.mark.parametrize("before", [0, 1, 2 * HISTORY])
@pytest.mark.parametrize("norm", [NAN, INF])
def test_a_norm_that_is_not_finite_is_always_skipped_and_forgotten(before, norm):
    found = guard(wavering(before))
    state = found.state()
    assert skips(found, [norm]) == [1.0]
    assert found.state() == state
    assert skips(found, [1.0]) == [0.0]


def test_an_outlier_is_skipped_and_forgotten_once_there_is_a_history():
    found = guard(wavering(HISTORY))
    state = found.state()
    assert skips(found, [25.0, 1e6, 3e38]) == [1.0] * 3
    assert found.state() == state
    assert skips(found, [15.0, 1.0, 1e-6]) == [0.0] * 3  # within the factor, usual, small


def test_without_a_history_nothing_finite_is_an_outlier():
    assert skips(guard(wavering(HISTORY - 1)), [1e6]) == [0.0]
    assert skips(guard(wavering(HISTORY)), [1e6]) == [1.0]


def test_skipped_steps_are_no_history():
    found = guard()
    assert skips(found, [NAN] * HISTORY) == [1.0] * HISTORY
    assert skips(found, [1.0, 1e6]) == [0.0, 0.0]


def test_the_factor_counts():
    for factor, answer in ((10.0, 1.0), (14.0, 0.0)):
        assert skips(guard([1.0] * HISTORY, factor), [12.0]) == [answer]


def test_a_shift_of_level_within_the_factor_is_followed():
    """And what was an outlier before it is none after it, nor the other way round."""
    found = guard(wavering(HISTORY))
    assert skips(found, [100.0]) == [1.0]
    assert not any(skips(found, wavering(200, 10.0)))
    assert skips(found, [100.0]) == [0.0]
    assert not any(skips(found, wavering(400, 0.1)))
    assert skips(found, [10.0]) == [1.0]


def test_a_shift_of_level_beyond_the_factor_is_skipped_for_good():
    """So that the limit on skips in a row ends the run: nobody else can tell a new level from a broken run."""
    assert skips(guard(wavering(HISTORY)), [100.0] * 500) == [1.0] * 500


def test_a_norm_of_zero_is_taken_and_is_no_history():
    found = guard(wavering(HISTORY))
    state = found.state()
    assert skips(found, [0.0]) == [0.0]
    assert found.state() == state and all(map(math.isfinite, state))
    assert skips(guard([0.0] * 100), [1e6]) == [0.0]


def test_state_survives_a_checkpoint_exactly():
    found = guard(wavering(77, 0.37))
    other = Guard(20.0, torch.device("cpu"))
    other.load(found.state())
    assert other.state() == found.state() and found.state()[2] == 77
    for norm in (*wavering(20, 3.0), 60.0, 1.0):
        assert skips(found, [norm]) == skips(other, [norm])
        assert other.state() == found.state()


def test_the_usual_norm_is_the_geometric_mean_of_the_last_steps():
    mean, weight, _ = guard([2.0, 8.0] * 300).state()
    assert math.exp(mean / weight) == pytest.approx(4.0, rel=0.02)
    mean, weight, steps = guard([3.0]).state()
    assert math.exp(mean / weight) == pytest.approx(3.0, rel=1e-6) and steps == 1
