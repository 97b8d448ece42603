from itertools import pairwise

import pytest
import torch

from pipeline.diffusion import EDM, SAMPLERS, denoiser_calls, guided, sample, sigma_grid


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


@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("dpmpp_2m", 2), ("euler", 1)])
def test_order_of_convergence_to_the_exact_solution(method, order):
    """Along x/sqrt(data² + σ²) the exact flow stands still; doubling the steps divides the error by 2 to the order."""
    z = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = z * 80 * 0.9 / (0.9**2 + 80**2) ** 0.5
    errors = [float((SAMPLERS[method](gaussian, z, EDM(), steps) - exact).norm()) for steps in (32, 64, 128, 256)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.12)


@pytest.mark.parametrize("steps", [2, 5, 14, 30])
@pytest.mark.parametrize("method", ["dpmpp_2m", "euler"])
def test_agrees_with_the_scheduler_of_diffusers(method, steps):
    """On the same network, the noise of which diffusers' schedulers make the denoised image themselves, in float32."""
    from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler

    scheduler = {"euler": EDMEulerScheduler, "dpmpp_2m": EDMDPMSolverMultistepScheduler}[method](sigma_data=0.9)
    scheduler.set_timesteps(steps)
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    text = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2))
    theirs = z * 80
    for c_noise in scheduler.timesteps:
        scaled = scheduler.scale_model_input(theirs, c_noise)
        theirs = scheduler.step(bent(scaled, c_noise.expand(2), text), c_noise, theirs).prev_sample
    ours = sample(bent, z, text, EDM(), steps, guidance=1.0, method=method)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def bent(x, c_noise, text, ids_keep=None):
    """A network that is far from linear, so that a wrong point, level or order of steps shows."""
    return (x * (2 + c_noise[:, None, None, None])).sin() + text.mean(dim=(1, 2))[:, None, None, None]


@pytest.mark.parametrize("method", SAMPLERS)
def test_calls_and_progress(method):
    calls, steps = [], []

    def counted(x, sigma):
        calls.append((x.dtype, sigma.shape))
        return gaussian(x, sigma)

    found = SAMPLERS[method](counted, torch.ones(3, 1, 2, 2), EDM(), 5, lambda *done: steps.append(done))
    assert calls == [(torch.float32, (3,))] * denoiser_calls(method, 5)
    assert len(calls) == (9 if method == "heun" else 5)
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


@pytest.mark.parametrize("method", SAMPLERS)
def test_outside_its_interval_guidance_asks_for_the_conditional_half_alone(method):
    asked = []

    def counted(x, c_noise, *rest):
        asked.append((len(x), float((4 * c_noise[0]).exp())))
        return network(x, c_noise, *rest)

    generator = torch.Generator().manual_seed(0)
    z, text = torch.randn(2, 1, 2, 2, generator=generator), torch.randn(2, 3, 4, generator=generator)
    found = sample(counted, z, text, EDM(), 8, 3.0, method=method, interval=(0.3, 6.0))
    levels = sigma_grid(EDM(), 8).tolist()
    inside = sum(0.3 < level <= 6 for level in levels) * (2 if method == "heun" else 1)
    rows = [rows for rows, _ in asked]
    assert rows.count(4) == inside > 0 and rows.count(2) == denoiser_calls(method, 8) - inside > 0
    assert all((rows == 4) == (0.3 < sigma <= 6) for rows, sigma in asked)

    def weighed(x, c_noise, conditional, ids_keep=None):  # the guided network by hand
        c, u = (network(x, c_noise, one) for one in (text, torch.zeros_like(text)))
        inside = ((4 * c_noise).exp() > 0.3) & ((4 * c_noise).exp() <= 6)
        return torch.where(inside[:, None, None, None], u + 3 * (c - u), c)

    torch.testing.assert_close(found, sample(weighed, z, text, EDM(), 8, 1.0, method=method))


@pytest.mark.parametrize("method", SAMPLERS)
def test_an_interval_over_all_levels_is_none(method):
    z, text = torch.ones(2, 1, 2, 2), torch.ones(2, 3, 4)
    whole = [sample(network, z, text, EDM(), 4, 3.0, method=method, interval=given) for given in (None, (0.0, 80.0))]
    assert torch.equal(*whole)


def test_an_unknown_method_is_told():
    with pytest.raises(ValueError, match="name is 'ddim'; give one of heun, dpmpp_2m, euler"):
        sample(network, torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1), EDM(), method="ddim")


@pytest.mark.parametrize("method", SAMPLERS)
def test_images_of_a_batch_do_not_meet(method):
    generator = torch.Generator().manual_seed(0)
    z, text = torch.randn(3, 1, 2, 2, generator=generator), torch.randn(3, 2, 2, generator=generator)
    together = sample(network, z, text, EDM(), 4, method=method)
    alone = torch.cat([sample(network, z[i : i + 1], text[i : i + 1], EDM(), 4, method=method) for i in range(3)])
    torch.testing.assert_close(together, alone)
