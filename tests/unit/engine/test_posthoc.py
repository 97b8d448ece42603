import math

import pytest
import torch

from pipeline.engine.ema import exponent
from pipeline.engine.posthoc import Profile, coefficients, combine, inner_product

STEPS = 480


def walk():
    """A value after each step: a random walk, as rough as a trajectory of weights."""
    return torch.randn(STEPS, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(0)


def decline():
    time = torch.arange(STEPS, dtype=torch.float64) / STEPS
    return (-3 * time).exp() + 0.1 * (40 * time).sin()


def average(profile, values):
    """The power-function average, exactly."""
    ends = (torch.arange(profile.images + 1, dtype=torch.float64) / profile.images) ** (exponent(profile.width) + 1)
    return (ends.diff() * values[: profile.images]).sum().item()


def snapshots(count, widths=(0.05, 0.10)):
    return [Profile(STEPS * number // count, width) for number in range(1, count + 1) for width in widths]


@pytest.mark.parametrize("trajectory", [walk, decline])
@pytest.mark.parametrize("width", [0.055, 0.06, 0.07, 0.08, 0.09])
def test_an_average_of_a_width_between_is_reconstructed(trajectory, width):
    values, kept, wanted = trajectory(), snapshots(16), Profile(STEPS, width)
    factors = coefficients(kept, wanted)
    found = sum(factor * average(profile, values) for factor, profile in zip(factors, kept, strict=True))
    spread = (values.max() - values.min()).item()
    assert abs(found - average(wanted, values)) < 1e-3 * spread
    nearest = min(abs(average(Profile(STEPS, end), values) - average(wanted, values)) for end in (0.05, 0.10))
    assert abs(found - average(wanted, values)) < nearest / 3  # no snapshot would do as well
    assert sum(factors) == pytest.approx(1, abs=1e-3)
    assert sum(map(abs, factors)) < 2  # so that the rounding of stored snapshots stays small


def test_more_snapshots_come_closer():
    def error(count):
        values, kept, wanted = walk(), snapshots(count), Profile(STEPS, 0.2)
        factors = coefficients(kept, wanted)
        found = sum(factor * average(profile, values) for factor, profile in zip(factors, kept, strict=True))
        return abs(found - average(wanted, values))

    assert error(4) > error(16) > error(60)


@pytest.mark.parametrize("wanted", [Profile(STEPS, 0.05), Profile(STEPS, 0.10), Profile(STEPS // 2, 0.10)])
def test_a_snapshot_is_made_of_itself_alone(wanted):
    kept = snapshots(16)
    factors = coefficients(kept, wanted)
    assert factors == pytest.approx([float(profile == wanted) for profile in kept], abs=1e-9)


def test_an_average_at_an_earlier_time_uses_nothing_later():
    kept = snapshots(16)
    factors = coefficients(kept, Profile(STEPS // 2, 0.07))
    assert all(factor == 0 for factor, profile in zip(factors, kept, strict=True) if profile.images > STEPS // 2)
    assert any(factor for factor, profile in zip(factors, kept, strict=True) if profile.images == STEPS // 2)


@pytest.mark.parametrize("images", [400, STEPS + 1, 1])
def test_without_a_snapshot_at_the_time_it_is_told(images):
    with pytest.raises(ValueError, match=rf"^no snapshot at {images} images; there are \[240, 480\]$"):
        coefficients(snapshots(2), Profile(images, 0.07))


def test_without_any_snapshot_it_is_told():
    with pytest.raises(ValueError, match=r"^no snapshot at 480 images; there are \[\]$"):
        coefficients([], Profile(STEPS, 0.07))


def test_inner_products_are_integrals():
    a, b = Profile(300, 0.1), Profile(480, 0.2)
    times = torch.arange(300 * 1000, dtype=torch.float64) / 1000 + 0.0005
    densities = [(exponent(p.width) + 1) * times ** exponent(p.width) / p.images ** (exponent(p.width) + 1) for p in (a, b)]
    expected = (densities[0] * densities[1]).sum().item() / 1000
    assert inner_product(a, b) == pytest.approx(expected, rel=1e-5)
    assert inner_product(b, a) == pytest.approx(inner_product(a, b), rel=1e-12)


def test_a_week_of_training_does_not_overflow():
    factors = coefficients([Profile(10**7 * n, width) for n in range(1, 61) for width in (0.01, 0.05)], Profile(6 * 10**8, 0.03))
    assert all(map(math.isfinite, factors)) and sum(factors) == pytest.approx(1, abs=1e-2)


def test_combine_adds_in_float32():
    stored = [{"w": torch.tensor([1.0, 2.0]).half(), "n": torch.tensor([3.0]).half()} for _ in range(2)]
    stored[1]["w"] += 2
    combined = combine(stored, [-0.5, 1.5])
    assert combined["w"].dtype == torch.float32
    assert combined["w"].tolist() == [4.0, 5.0] and combined["n"].tolist() == [3.0]
    assert stored[0]["w"].tolist() == [1.0, 2.0]
