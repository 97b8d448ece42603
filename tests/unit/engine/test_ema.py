import pytest
import torch
from torch import nn

from pipeline.engine.ema import Average, exponent, exponential, power_function, relative_width
from tests.unit.engine.small_steps import recipe

STEP = 10  # images


class Walk(nn.Module):
    """Two parameters and a buffer that move with every step."""

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(0)
        self.a, self.b = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4))
        self.register_buffer("table", torch.arange(3.0))

    @torch.no_grad()
    def move(self):
        for parameter in self.parameters():
            parameter += torch.randn(parameter.shape, generator=self._generator)
        return self.a.detach().clone().double()


def weighted(history, weights):
    return sum(weight * point for weight, point in zip(weights, history, strict=True))


def close(average, expected):
    torch.testing.assert_close(average.tensors["a"].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("foreach", [True, False])
def test_average_is_the_closed_form(foreach):
    model = Walk()
    average = Average(model, exponential(recipe(ema_decay=0.9)), foreach)
    history = [torch.zeros(2, 3, dtype=torch.float64)]
    for step in range(1, 6):
        history.append(model.move())
        average.update(STEP * step)
    close(average, weighted(history, [0.9**5] + [0.1 * 0.9 ** (5 - step) for step in range(1, 6)]))


def test_average_follows_the_weights_until_its_start():
    model, decay = Walk(), exponential(recipe(ema_decay=0.9, ema_start_images=3 * STEP))
    average = Average(model, decay)
    for step in (1, 2, 3):
        weights = model.move()
        average.update(STEP * step)
        assert torch.equal(average.tensors["a"].double(), weights)
    now = model.move()
    average.update(4 * STEP)
    close(average, weights + 0.1 * (now - weights))
    assert [decay(images) for images in (30, 40)] == [0.0, 0.9]


def test_average_is_a_copy_with_the_buffers_and_needs_no_gradient():
    model = Walk()
    average = Average(model, exponential(recipe()))
    model.move()
    model.table += 1
    assert average.tensors.keys() == model.state_dict().keys()
    assert not average.tensors["a"].any() and average.tensors["table"].tolist() == [0, 1, 2]
    average.update(STEP)
    assert not any(tensor.requires_grad for tensor in average.tensors.values())
    assert average.tensors["table"].tolist() == [0, 1, 2]


def power_weights(width, steps):
    """The share of each step in an average with the profile t^γ, γ from the width: ∫ of the density over the step."""
    gamma = exponent(width)
    return [((step + 1) ** (gamma + 1) - step ** (gamma + 1)) / steps ** (gamma + 1) for step in range(steps)]


@pytest.mark.parametrize("width", [0.05, 0.10, 0.25])
@pytest.mark.parametrize("stop", [None, 1, 30])
def test_power_function_average_is_the_weighted_average(width, stop):
    """Also when it goes on from saved tensors."""
    model, history = Walk(), []
    average = Average(model, power_function(width, STEP))
    for step in range(1, 61):
        history.append(model.move())
        average.update(STEP * step)
        if step == stop:
            saved = {name: tensor.clone() for name, tensor in average.tensors.items()}
            average = Average(model, power_function(width, STEP))
            for name, tensor in average.tensors.items():
                tensor.copy_(saved[name])
    weights = power_weights(width, 60)
    assert sum(weights) == pytest.approx(1, rel=1e-9)
    close(average, weighted(history, weights))
    others = power_weights(width * 1.1, 60)
    with pytest.raises(AssertionError):
        close(average, weighted(history, others))


def test_width_is_the_standard_deviation_of_the_profile():
    times = (torch.arange(10**5, dtype=torch.float64) + 0.5) / 10**5
    for width in (0.03, 0.1, 0.2):
        density = times ** exponent(width)
        density /= density.sum()
        mean = (density * times).sum()
        assert (density * (times - mean) ** 2).sum().sqrt().item() == pytest.approx(width, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 6.94, 16.97, 1000.0])
def test_exponent_is_the_inverse_of_the_width(gamma):
    assert exponent(relative_width(gamma)) == pytest.approx(gamma, rel=1e-9, abs=1e-9)


def test_exponents_of_the_paper():
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.3, float("nan")])
def test_a_width_that_no_profile_has_is_told(width):
    with pytest.raises(ValueError, match=rf"^relative width {width}: give a number above 0 and at most 0\.289$"):
        exponent(width)
