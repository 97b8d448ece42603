import pytest
import torch

from pipeline.diffusion import EDM, guided, heun, sample, sigma_grid


def gaussian(x, sigma, data=0.9):
    """The exact denoiser of latents drawn from N(0, data²)."""
    return x * (data**2 / (data**2 + sigma[:, None, None, None] ** 2))


def test_grid_of_the_paper():
    grid = sigma_grid(EDM(), 30)
    assert grid.shape == (31,)
    assert grid[[0, 29, 30]].tolist() == pytest.approx([80, 0.002, 0], abs=1e-12)
    assert (grid.diff() < 0).all()
    middle = (80 ** (1 / 7) + 10 / 29 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert float(grid[10]) == pytest.approx(middle)


def test_second_order_convergence_to_the_exact_solution():
    """Along x/sqrt(data² + σ²) the exact flow stands still; doubling the steps quarters Heun's error."""
    z = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = z * 80 * 0.9 / (0.9**2 + 80**2) ** 0.5
    errors = [float((heun(gaussian, z, EDM(), steps) - exact).norm()) for steps in (32, 64, 128)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.3)


def test_calls_and_progress():
    calls, steps = [], []

    def counted(x, sigma):
        calls.append((x.dtype, sigma.shape))
        return gaussian(x, sigma)

    found = heun(counted, torch.ones(3, 1, 2, 2), EDM(), 5, lambda *done: steps.append(done))
    assert calls == [(torch.float32, (3,))] * 9
    assert steps == [(i, 5) for i in range(1, 6)]
    assert found.dtype == torch.float32


def test_too_few_steps_is_told():
    with pytest.raises(ValueError, match="steps is 1"):
        sigma_grid(EDM(), 1)


def network(x, c_noise, text, ids_keep=None):
    return x * c_noise[:, None, None, None] + text.mean(dim=(1, 2))[:, None, None, None] ** 2 + 1


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_is_linear_between_the_two_answers(scale):
    x, c_noise, text = torch.randn(2, 1, 2, 2), torch.randn(2), torch.randn(2, 3, 4)
    conditional, unconditional = network(x, c_noise, text), network(x, c_noise, torch.zeros_like(text))
    expected = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(guided(network, text, scale)(x, c_noise), expected)


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 2), (5.0, 4)])
def test_text_is_encoded_once_and_scale_one_has_no_second_half(scale, rows):
    encoded, batches = [], []

    def encode(text):
        encoded.append(text)
        return text

    def counted(x, *rest):
        batches.append(len(x))
        return network(x, *rest)

    sample(counted, torch.ones(2, 1, 2, 2), torch.ones(2, 3, 4), EDM(), 4, scale, encode)
    assert len(encoded) == 1
    assert not encoded[0][2:].any()
    assert batches == [rows] * 7


def test_images_of_a_batch_do_not_meet():
    generator = torch.Generator().manual_seed(0)
    z, text = torch.randn(3, 1, 2, 2, generator=generator), torch.randn(3, 2, 2, generator=generator)
    together = sample(network, z, text, EDM(), 4)
    alone = torch.cat([sample(network, z[i : i + 1], text[i : i + 1], EDM(), 4) for i in range(3)])
    torch.testing.assert_close(together, alone)
