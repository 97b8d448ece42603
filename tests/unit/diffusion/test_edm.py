import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.diffusion import EDM, patch_means


@given(st.floats(0.002, 80), st.floats(0.1, 2))
def test_preconditioning_identities(level, data):
    """Equations 117, 131, 138 and 144 of EDM: unit input, unit target, weight = 1 / c_out²."""
    edm, sigma = EDM(sigma_data=data), torch.tensor([level], dtype=torch.float64)
    skip, out, scale, noise = edm.precondition(sigma)
    assert float(scale**2 * (data**2 + sigma**2)) == pytest.approx(1)
    assert float(((1 - skip) ** 2 * data**2 + skip**2 * sigma**2) / out**2) == pytest.approx(1)
    assert float(edm.weight(sigma) * out**2) == pytest.approx(1)
    assert float(noise) == pytest.approx(math.log(level) / 4)


def test_a_perfect_network_has_no_loss():
    """The F that makes D exact costs nothing at any noise level."""
    edm, generator = EDM(), torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(8, 4, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    normal = torch.randn(8, generator=generator, dtype=torch.float64)
    skip, out, *_ = (factor[:, None, None, None] for factor in edm.precondition(edm.training_sigma(normal)))
    noisy = clean + noise * edm.training_sigma(normal)[:, None, None, None]
    loss = edm.loss(lambda *_: (clean - skip * noisy) / out, clean, None, normal, noise, 2)
    assert float(loss.mean) < 1e-20


def test_loss_by_hand():
    edm, generator = EDM(), torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    normal, ids = torch.tensor([0.5, -1.0]), torch.tensor([[0, 3], [1, 2]])
    loss = edm.loss(lambda x, *_: 0.3 * x, clean, None, normal, noise, 2, ids)
    for image in range(2):
        sigma = math.exp(-0.6 + 1.2 * float(normal[image]))
        total, data = sigma**2 + 0.81, 0.9
        noisy = clean[image] + sigma * noise[image]
        denoised = data**2 / total * noisy + sigma * data / math.sqrt(total) * 0.3 * noisy / math.sqrt(total)
        squared = ((denoised - clean[image]) ** 2).mean(0)
        corners = [(2 * (token // 2), 2 * (token % 2)) for token in ids[image].tolist()]
        error = sum(float(squared[row : row + 2, column : column + 2].mean()) for row, column in corners) / 2
        assert float(loss.error[image]) == pytest.approx(error, rel=1e-5)
        assert float(loss.per_image[image]) == pytest.approx(error * total / (sigma * data) ** 2, rel=1e-5)
        assert float(loss.sigma[image]) == pytest.approx(sigma, rel=1e-6)
    assert float(loss.mean) == pytest.approx(float(loss.per_image.mean()))


def test_only_the_mean_carries_gradients():
    scale = torch.ones((), requires_grad=True)
    ones = torch.ones(1, 1, 2, 2)
    loss = EDM().loss(lambda x, *_: scale * x, ones, None, torch.zeros(1), ones, 1)
    assert loss.mean.requires_grad
    assert not loss.per_image.requires_grad
    assert not loss.error.requires_grad


def test_patch_means_are_row_major():
    values = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert patch_means(values, 2).tolist() == [[2.5, 4.5, 10.5, 12.5]]
    assert patch_means(values, 2, torch.tensor([[3, 1]])).tolist() == [[12.5, 4.5]]


def test_mask_reaches_the_network():
    seen = []
    ids = torch.zeros(1, 1, dtype=torch.int64)
    x = torch.ones(1, 1, 1, 1)
    EDM().denoise(lambda *args: seen.append(args[3]) or args[0], x, torch.ones(1), None, ids)
    assert seen == [ids]


def test_dictionary_round_trip():
    edm = EDM(p_mean=0.0, p_std=0.6)
    assert EDM.from_dict(edm.to_dict()) == edm
    with pytest.raises(ValueError, match="unknown key 'pmean'"):
        EDM.from_dict({"pmean": 0})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sigma_data": 0}, "sigma_data is 0; give a number above 0"),
        ({"p_std": -1}, "p_std is -1"),
        ({"sigma_max": 0.001}, r"sigma_max is 0.001; give a number above sigma_min \(0.002\)"),
    ],
)
def test_bad_constants_are_told(change, words):
    with pytest.raises(ValueError, match=words):
        EDM(**change)
