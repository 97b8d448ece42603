import json

import pytest
import torch
from safetensors.torch import save_file

from pipeline.dataset import Manifest
from pipeline.errors import UserError
from pipeline.model import MicroDiT, position_table
from pipeline.train.network import Parent, architecture, starting_model


@pytest.fixture
def parent(slice_of, manifest, tmp_path):
    model = MicroDiT(architecture(slice_of(), manifest), seed=9)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "summary.json").write_text(json.dumps({"fingerprint": "abc", "images_seen_total": 480}))
    return Parent.read(tmp_path)


def test_data_decides_channels_text_and_side(slice_of, manifest):
    config = architecture(slice_of(model={"depth": 3, "ffn_ratio": (1.0, 2.0)}), manifest)
    assert (config.in_channels, config.caption_length, config.caption_channels, config.input_size) == (4, 3, 8, 4)
    assert (config.depth, config.dim, config.ffn_ratio, config.pos_interp_scale) == (3, 32, (1.0, 2.0), 1.0)


def test_positions_are_interpolated_at_a_higher_resolution(slice_of, toy_high):
    config = architecture(slice_of(px=16), Manifest.read(toy_high))
    assert (config.input_size, config.pos_interp_scale) == (8, 2.0)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model": {"dim": 30}}, "stages.toy: model: dim 30"),
        ({"model": {"mixer_depth": 0}}, "stages.toy: model: mask_mode deferred"),
        ({"model": {"mask_mode": "none"}, "mask_ratio": 0.5}, "stages.toy.mask_ratio: 0.5, but model.mask_mode is none"),
        ({"mask_ratio": 0.99}, "stages.toy: mask_ratio 0.99 keeps none of 16 tokens"),
        ({"slice_": {"base_px": 9}}, "stages.toy.px: latents of 8 px have side 4"),
    ],
)
def test_what_does_not_fit_is_named(slice_of, manifest, changes, fault):
    with pytest.raises(UserError) as caught:
        architecture(slice_of(**changes), manifest)
    assert str(caught.value).startswith(fault) and "\n" not in str(caught.value)


def test_the_first_stage_starts_from_the_seed(slice_of, manifest):
    config = architecture(slice_of(), manifest)
    weights = [starting_model(config, slice_of({"seed": seed}), None).x_embedder.proj.weight for seed in (3, 3, 4)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_weights_carry_over_and_positions_are_made_anew(slice_of, manifest, toy_high, parent):
    before = parent.tensors("model")
    config = architecture(slice_of(px=16), Manifest.read(toy_high))
    model = starting_model(config, slice_of(px=16), parent)
    assert torch.equal(model.pos_embed, position_table(config)) and model.pos_embed.shape[1] == 64
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.requires_grad


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda t: t.pop("final_layer.linear.bias"), "final_layer.linear.bias has shape null, this stage needs [4]"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra has shape [1], this stage needs null"),
        (
            lambda t: t.update({"x_embedder.proj.bias": torch.zeros(2)}),
            "x_embedder.proj.bias has shape [2], this stage needs [32]",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(slice_of, manifest, parent, change, fault):
    tensors = parent.tensors("model")
    change(tensors)
    save_file(tensors, parent.folder / "model.safetensors")
    with pytest.raises(UserError) as caught:
        starting_model(architecture(slice_of(), manifest), slice_of(), parent)
    assert f"{parent.folder}/model.safetensors: {fault}" in str(caught.value)


def test_an_unfinished_parent_is_named(tmp_path, parent):
    (parent.folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
        parent.tensors("model")
    with pytest.raises(UserError, match=r"none/summary\.json"):
        Parent.read(tmp_path / "none")
