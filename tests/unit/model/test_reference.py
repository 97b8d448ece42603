"""Every number of the reference file, at its own tolerance."""

import pytest
import torch

from pipeline.diffusion import guided, sample
from pipeline.model import position_table

SAMPLES = 5e-6


def test_layer_scaling_is_the_spread_between_first_and_last(reference):
    for name, ends in (("qkv_multipliers", reference.config.qkv_ratio), ("ffn_multipliers", reference.config.ffn_ratio)):
        spread = torch.linspace(*ends, reference.config.depth, dtype=torch.float64)
        assert spread.tolist() == pytest.approx(reference.card["config"][name])


def test_positions_are_equal_to_the_last_bit(reference):
    assert torch.equal(position_table(reference.config), reference.state["pos_embed"])


def test_full(reference):
    given = reference.inputs
    reference.check("full", reference.model(given["x"], given["c_noise"], given["text"]))


@pytest.mark.parametrize("ratio", ["0.5", "0.75"])
def test_masked(reference, ratio):
    given = reference.inputs
    found = reference.model(given["x"], given["c_noise"], given["text"], given[f"ids_keep_{ratio}"])
    reference.check(f"masked_{ratio}", found)
    dropped = given[f"mask_{ratio}"].reshape(3, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2) == 1
    assert (found.movedim(1, -1)[dropped] == 0).all()


@pytest.mark.parametrize("precomputed", [False, True])
def test_guided(reference, precomputed):
    given, encode = reference.inputs, reference.model.encode_text if precomputed else None
    network = guided(reference.model, given["text"], 3.0, encode)
    reference.check("cfg_3", network(given["x"], given["c_noise"]))


def test_denoised(reference):
    given = reference.inputs
    noisy = given["x"] * given["sigma"][:, None, None, None]
    reference.check("denoised", reference.edm.denoise(reference.model, noisy, given["sigma"], given["text"]))


@pytest.mark.parametrize("ratio", ["0", "0.75"])
def test_loss(reference, ratio):
    given = reference.inputs
    loss = reference.edm.loss(
        reference.model,
        given["x"],
        given["text"],
        given["loss_normal"],
        given["loss_noise"],
        2,
        given.get(f"loss_ids_keep_{ratio}"),
    )
    reference.check(f"loss_{ratio}", loss.mean)


@pytest.mark.parametrize("guidance", [1, 3])
def test_samples(reference, guidance):
    given, model = reference.inputs, reference.model
    found = sample(model, given["z"], given["text"], reference.edm, 8, guidance, model.encode_text)
    reference.check(f"sample_heun_8_cfg{guidance}", found, SAMPLES)


def test_every_output_is_checked_here(reference):
    assert set(reference.outputs) == {
        "full",
        "masked_0.5",
        "masked_0.75",
        "cfg_3",
        "denoised",
        "loss_0",
        "loss_0.75",
        "sample_heun_8_cfg1",
        "sample_heun_8_cfg3",
    }
