"""Latents that are no squares: positions, masks, outputs and FLOPs of any grid of tokens."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model import PRESETS, MicroDiT, at_resolution, forward_flops, keep_ids, kept_tokens, position_table, training_flops
from pipeline.model.masking import unpatchify

GRIDS = [(4, 4), (3, 5), (5, 3), (2, 8), (1, 1), (7, 2)]


def random_model(config, generator):
    """Every weight random, so that nothing hides behind a zero gate."""
    model = MicroDiT(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def inputs(config, generator, rows, columns, size=2):
    p = config.patch_size
    x = torch.randn(size, config.in_channels, rows * p, columns * p, generator=generator)
    text = torch.randn(size, config.caption_length, config.caption_channels, generator=generator)
    return x, torch.randn(size, generator=generator), text


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_positions_lie_around_the_centre_of_the_square(rows, columns, scale):
    config = replace(PRESETS["small"], pos_interp_scale=scale)
    table = position_table(config, rows, columns)[0].double().reshape(rows, columns, 96)
    for axis, count, part in ((0, rows, table[:, 0, 48:]), (1, columns, table[0, :, :48])):
        positions = (torch.arange(count, dtype=torch.float64) + (4 - count) / 2) / scale
        torch.testing.assert_close(part[:, 0], positions.sin(), atol=1e-7, rtol=0)
        torch.testing.assert_close(part[:, 24], positions.cos(), atol=1e-7, rtol=0)
        middle = (positions[0] + positions[-1]) / 2
        assert middle == pytest.approx(1.5 / scale), f"axis {axis}"
    assert torch.equal(table[:, :1, 48:].expand(-1, columns, -1), table[..., 48:])
    assert torch.equal(table[:1, :, :48].expand(rows, -1, -1), table[..., :48])


def test_the_square_has_the_buffer_itself(tiny):
    model = MicroDiT(tiny)
    assert model.positions(4, 4) is model.pos_embed
    assert torch.equal(position_table(tiny, 4, 4), position_table(tiny)) and torch.equal(position_table(tiny), model.pos_embed)
    other = model.positions(2, 8)
    assert model.positions(2, 8) is other and model.positions(8, 2) is not other  # made once
    assert list(model.state_dict()) == list(MicroDiT(tiny).state_dict())


def test_a_square_of_another_side_has_positions_of_its_own(tiny):
    assert not torch.equal(MicroDiT(tiny).positions(2, 2), position_table(at_resolution(tiny, 2)))


@torch.no_grad()
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (5, 3), (2, 8)])
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_forward_by_hand(tiny, generator, patch, rows, columns, ratio):
    config = replace(tiny, patch_size=patch, input_size=4 * patch)
    model, (x, c_noise, text) = random_model(config, generator), inputs(config, generator, rows, columns)
    total = rows * columns
    ids = keep_ids(torch.rand(2, total, generator=generator), ratio) if ratio else torch.arange(total).repeat(2, 1)
    encoded = model.encode_text(text, keys_values=False)
    condition = model.t_embedder(c_noise) + encoded.pooled
    tokens = model.patch_mixer_map_xin(model.x_embedder(x) + position_table(config, rows, columns))
    for block, mixer_text in zip(model.patch_mixer, encoded.mixer, strict=True):
        tokens = block(tokens, condition, mixer_text)
    tokens = model.patch_mixer_map_xout(tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1])))
    for block, block_text in zip(model.blocks, encoded.blocks, strict=True):
        tokens = block(tokens, condition, block_text)
    expected = torch.zeros(2, config.in_channels, rows * patch, columns * patch)
    for image, patches in enumerate(model.final_layer(tokens, condition)):
        for token, values in zip(ids[image].tolist(), patches, strict=True):
            top, left = patch * (token // columns), patch * (token % columns)
            expected[image, :, top : top + patch, left : left + patch] = values.view(patch, patch, -1).permute(2, 0, 1)
    found = model(x, c_noise, text, ids if ratio else None)
    assert found.shape == x.shape
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_patches_do_not_change_places(tiny, generator):
    """What is above is told from what is beside: a turned image is not answered with the answer turned."""
    model, (x, c_noise, text) = random_model(tiny, generator), inputs(tiny, generator, 3, 5)
    turned = model(x.transpose(2, 3), c_noise, text)
    assert turned.shape == (2, 4, 5, 3)
    assert not torch.allclose(turned.transpose(2, 3), model(x, c_noise, text), rtol=1e-2)


def test_unpatchify_undoes_the_order_of_the_patch_embedding(generator):
    image = torch.randn(2, 3, 4, 10, generator=generator)
    patches = image.unfold(2, 2, 2).unfold(3, 2, 2)  # [B, C, rows, columns, p, p]
    tokens = patches.permute(0, 2, 3, 4, 5, 1).reshape(2, 10, 12)
    assert torch.equal(unpatchify(tokens, 2, 2), image)


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (2, 8), (2, 3)])
def test_flops_are_what_torch_counts(rows, columns, ratio):
    config = PRESETS["small"]
    with torch.device("meta"):
        model = MicroDiT(config)
        images = (torch.empty(1, 4, rows, columns), torch.empty(1), torch.empty(1, 24, 64))
        ids = keep_ids(torch.empty(1, rows * columns), ratio) if ratio else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert model(*images, ids).shape == images[0].shape
    assert forward_flops(config, ratio, rows * columns) == counter.get_total_flops()


def test_the_squares_flops_are_those_without_a_number():
    config = PRESETS["xl2"]
    assert training_flops(config, 0.75, config.num_tokens) == training_flops(config, 0.75)
    assert kept_tokens(12 * 21, 0.75) == 63


def test_shapes_of_a_bucket_are_static(tiny, generator):
    """Symbolic tracing fails on any step that depends on the values."""
    model = random_model(tiny, generator)
    given = (*inputs(tiny, generator, 3, 5), keep_ids(torch.rand(2, 15, generator=generator), 0.5))
    expected = model(*given)
    torch.testing.assert_close(torch.export.export(model, given).module()(*given), expected)
