"""A step for which the memory does not suffice, in the middle of training."""

import pytest
import torch
from torch.utils.hooks import RemovableHandle

from pipeline.engine.step import Alone, TrainStep
from tests.unit.engine.small_steps import IMAGES, distance, flat, make_step, objective, samples, trained, warmed

CLOSE = 1e-4


class Full:
    """Memory that holds up to `room` images at a time from call `call` of the network on; `where` it runs out."""

    def __init__(self, model: torch.nn.Module, room: int, call: int, where: str) -> None:
        self.room, self.call, self.where, self.calls = room, call, where, 0
        model.register_forward_pre_hook(self._before)
        self._late: RemovableHandle | None = None
        self._last = next(model.parameters())  # its gradient is among the last ones

    def _before(self, model, arguments):
        if self._late is not None:
            self._late.remove()
        self.calls += 1
        if self.calls < self.call or len(arguments[0]) <= self.room:
            return
        if self.where == "forward":
            self._run_out()
        self._late = self._last.register_hook(lambda gradient: self._run_out())

    def _run_out(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(("size", "room", "left"), [(IMAGES, 6, 6), (6, 5, 3), (IMAGES, 2, 1)])
def test_the_step_is_repeated_with_less_at_a_time_and_gives_the_same_weights(where, size, room, left, capsys):
    """From the second microbatch of the second step on: a part of the gradient is there already."""
    step, undisturbed = make_step(microbatch=size, posthoc_ema=(0.05,)), make_step(microbatch=size, posthoc_ema=(0.05,))
    Full(step.model, room, 2 + IMAGES // size, where)
    for mine, expected in zip(trained(step), trained(undisturbed), strict=True):
        assert distance(mine, expected) < CLOSE
    assert step.microbatch == left
    told = capsys.readouterr().err.splitlines()
    assert len(told) >= 1 and told[0].startswith(f"out of memory with {size} images at a time; the step is repeated")


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_it_is_bit_for_bit_the_step_that_had_less_at_a_time_from_the_start(where):
    """So nothing of the attempt is left: no gradient, no moment, no average, no count."""
    step, other = make_step(posthoc_ema=(0.05,)), make_step(posthoc_ema=(0.05,))
    Full(step.model, 6, 3, where)
    for start in range(0, 4 * IMAGES, IMAGES):
        other.microbatch = IMAGES if start < 2 * IMAGES else 6
        measured = [one(samples(start), start + IMAGES) for one in (step, other)]
        assert torch.equal(measured[0].grad_norm, measured[1].grad_norm) and len(measured[0].losses) == len(measured[1].losses)
    assert torch.equal(flat(step.model), flat(other.model)) and step.guard.state() == other.guard.state()
    for mine, expected in (
        (step.ema, other.ema),
        (step.power_emas[0.05], other.power_emas[0.05]),
        (step.optimizer, other.optimizer),
    ):
        values = [one.tensors() if callable(one.tensors) else one.tensors for one in (mine, expected)]
        assert all(torch.equal(values[0][name], values[1][name]) for name in values[1])
    assert int(step.optimizer.tensors()["step"]) == 4


def test_one_image_at_a_time_that_does_not_fit_is_an_error():
    step = make_step(microbatch=2)
    Full(step.model, 0, 1, "forward")
    with pytest.raises(torch.OutOfMemoryError):
        step(samples(), IMAGES)
    assert step.microbatch == 1


def test_of_several_processes_none_goes_on_by_itself():
    """The others wait for its gradients, as many times as it had microbatches."""

    class Two(Alone):
        count = 2

    step = TrainStep(warmed(), objective(), IMAGES, microbatch=IMAGES, parallel=Two())
    Full(step.model, 6, 1, "forward")
    with pytest.raises(torch.OutOfMemoryError):
        step(samples(), IMAGES)
    assert step.microbatch == IMAGES
