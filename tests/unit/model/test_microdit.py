import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.model import (
    PRESETS,
    MicroDiT,
    at_resolution,
    keep_ids,
    parameter_count,
    position_table,
    state_layout,
    weights_at,
)

LAYOUTS = json.loads((Path(__file__).parents[2] / "data" / "official_layouts.json").read_text())


def random_model(config, generator):
    """Every weight random, so that nothing hides behind a zero gate."""
    model = MicroDiT(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def batch(config, generator, size=2):
    x = torch.randn(size, config.in_channels, config.input_size, config.input_size, generator=generator)
    text = torch.randn(size, config.caption_length, config.caption_channels, generator=generator)
    return x, torch.randn(size, generator=generator), text


@pytest.mark.parametrize(
    ("preset", "official", "parameters", "entries"),
    [("tiny2", "MicroDiT_Tiny_2", 200_692_752, 290), ("xl2", "MicroDiT_XL_2", 1_165_442_320, 478)],
)
def test_official_layout(preset, official, parameters, entries):
    layout = {name: list(shape) for name, shape in state_layout(PRESETS[preset]).items()}
    assert layout == LAYOUTS[official]
    assert list(layout) == list(LAYOUTS[official])
    assert len(layout) == entries
    assert parameter_count(PRESETS[preset]) == parameters


def test_sixteen_latent_channels():
    layout = state_layout(replace(PRESETS["xl2"], in_channels=16))
    assert layout["x_embedder.proj.weight"] == (1024, 16, 2, 2)
    assert layout["final_layer.linear.weight"] == (64, 1024)


def test_small_preset_is_small():
    assert 1.4e6 < parameter_count(PRESETS["small"]) < 1.8e6


def test_an_untrained_model_answers_zero(tiny, generator):
    assert (MicroDiT(tiny)(*batch(tiny, generator)) == 0).all()


@torch.no_grad()
def test_masked_forward_by_hand(tiny, generator):
    model, (x, c_noise, text) = random_model(tiny, generator), batch(tiny, generator, 3)
    ids = keep_ids(torch.rand(3, 16, generator=generator), 0.5)
    encoded = model.encode_text(text, keys_values=False)
    condition = model.t_embedder(c_noise) + encoded.pooled
    tokens = model.patch_mixer_map_xin(model.x_embedder(x) + model.pos_embed)
    for block, mixer_text in zip(model.patch_mixer, encoded.mixer, strict=True):
        tokens = block(tokens, condition, mixer_text)
    expected = torch.zeros(3, 16, 4)
    for image in range(3):
        kept = model.patch_mixer_map_xout(tokens[image, ids[image]][None])
        for block, block_text in zip(model.blocks, encoded.blocks, strict=True):
            kept = block(kept, condition[image, None], block_text[image, None])
        expected[image, ids[image]] = model.final_layer(kept, condition[image, None])[0]
    found = model(x, c_noise, text, ids)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected)


@torch.no_grad()
def test_order_of_kept_ids_does_not_matter(tiny, generator):
    model, inputs = random_model(tiny, generator), batch(tiny, generator)
    ids = keep_ids(torch.rand(2, 16, generator=generator), 0.5)
    torch.testing.assert_close(model(*inputs, ids), model(*inputs, ids.flip(1)))


@torch.no_grad()
def test_text_can_be_encoded_ahead_in_either_shape_and_half_precision(tiny, generator):
    model, (x, c_noise, text) = random_model(tiny, generator), batch(tiny, generator)
    expected = model(x, c_noise, text)
    assert torch.equal(model(x, c_noise, model.encode_text(text, keys_values=False)), expected)
    torch.testing.assert_close(model(x, c_noise, model.encode_text(text)), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(model(x, c_noise, text[:, None]), expected)
    assert torch.equal(model(x, c_noise, text.half()), model(x, c_noise, text.half().float()))


def test_keys_and_values_of_all_blocks_at_once_give_the_same_gradients(tiny, generator):
    model, inputs = random_model(tiny, generator), batch(tiny, generator)
    gradients = []
    for model.joint_text in (False, True):
        model(*inputs).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.zero_grad()
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("keep", [None, 2])
def test_tokens_and_their_gradients_lie_row_by_row(tiny, generator, keep):
    """A transposed residual would be copied by every norm: 3 % of a step on a CPU."""
    config = replace(tiny, mixer_dim=tiny.dim)
    model, inputs, rows = random_model(config, generator), batch(config, generator), []

    def look(_, arguments):
        rows.append(arguments[0].is_contiguous())
        arguments[0].register_hook(lambda gradient: rows.append(gradient.is_contiguous()))

    for block in (*model.patch_mixer, *model.blocks):
        block.register_forward_pre_hook(look)
    ids = torch.arange(keep).repeat(len(inputs[0]), 1) if keep else None
    model(*inputs, ids).square().sum().backward()
    assert len(rows) == 2 * (config.mixer_depth + config.depth) and all(rows)


@torch.no_grad()
@pytest.mark.parametrize("joint", [False, True])
def test_dropped_padding_is_as_if_it_was_never_there(tiny, generator, joint):
    config = replace(tiny, drop_text_padding=True)
    model, (x, c_noise, text) = random_model(config, generator), batch(tiny, generator)
    model.joint_text = joint
    text[:, 2:] = 0
    torch.testing.assert_close(model(x, c_noise, text), model(x, c_noise, text[:, :2]), rtol=1e-5, atol=1e-6)
    attends = MicroDiT.from_state(tiny, model.state_dict())
    assert not torch.allclose(attends(x, c_noise, text), attends(x, c_noise, text[:, :2]), rtol=1e-2)
    text[:, 0] = 0  # one real token is left
    empty = torch.zeros_like(text)
    assert model(x, c_noise, text).isfinite().all() and model(x, c_noise, empty).isfinite().all()
    torch.testing.assert_close(model(x, c_noise, empty), model(x, c_noise, empty[:, :1]), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_dropped_patches_reach_the_output_through_the_mixer_only(tiny, generator):
    naive = replace(tiny, mask_mode="naive", mixer_depth=0)
    x, c_noise, text = batch(tiny, generator)
    ids = torch.arange(8).repeat(2, 1)  # the first two rows of four
    other = x.clone()
    other[:, :, 2:] += 1
    for config, unchanged in ((tiny, False), (naive, True)):
        model = random_model(config, generator)
        assert torch.equal(model(x, c_noise, text, ids), model(other, c_noise, text, ids)) is unchanged


def test_mode_none_refuses_a_mask(tiny, generator):
    model = MicroDiT(replace(tiny, mask_mode="none"))
    with pytest.raises(ValueError, match="mask_mode is none"):
        model(*batch(tiny, generator), torch.zeros(2, 8, dtype=torch.int64))


def test_equal_widths_need_no_projections(tiny):
    layout = state_layout(replace(tiny, mixer_dim=tiny.dim))
    assert not any("map" in name for name in layout)


def test_every_parameter_gets_a_gradient(tiny, generator):
    model = random_model(tiny, generator)
    ids = keep_ids(torch.rand(2, 16, generator=generator), 0.5)
    model(*batch(tiny, generator), ids).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_positions_at_twice_the_resolution():
    config = at_resolution(replace(PRESETS["xl2"], dim=64, mixer_dim=64), 64)
    table = position_table(config)[0].reshape(32, 32, 64)
    positions = torch.arange(32, dtype=torch.float64) / 2
    assert positions[[0, 1, 2, 31]].tolist() == [0, 0.5, 1, 15.5]
    for part, line in ((table[0, :, :32], positions), (table[:, 0, 32:], positions)):
        torch.testing.assert_close(part[:, 0].double(), line.sin(), atol=1e-7, rtol=0)
        torch.testing.assert_close(part[:, 16].double(), line.cos(), atol=1e-7, rtol=0)
        torch.testing.assert_close(part[:, 8].double(), (line / 100).sin(), atol=1e-7, rtol=0)
    coarse = position_table(replace(config, input_size=32, pos_interp_scale=1.0))[0].reshape(16, 16, 64)
    assert torch.equal(table[::2, ::2], coarse)


@torch.no_grad()
def test_weights_move_to_another_resolution(tiny, generator):
    model, larger = random_model(tiny, generator), at_resolution(tiny, 8)
    moved = MicroDiT.from_state(larger, weights_at(larger, model.state_dict()))
    assert moved(*batch(larger, generator)).shape == (2, 4, 8, 8)
    assert torch.equal(moved.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    assert torch.equal(moved.pos_embed, position_table(larger))


def test_shapes_are_static(tiny, generator):
    """Symbolic tracing fails on any step that depends on the values."""
    model = random_model(tiny, generator)
    inputs = (*batch(tiny, generator), keep_ids(torch.rand(2, 16, generator=generator), 0.5))
    program = torch.export.export(model, inputs)
    torch.testing.assert_close(program.module()(*inputs), model(*inputs))


@torch.no_grad()
def test_autocast_gives_float_output(tiny, generator):
    model, inputs = random_model(tiny, generator), batch(tiny, generator)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*inputs)
    assert found.dtype == torch.float32
    assert (found - model(*inputs)).norm() / found.norm() < 0.1
