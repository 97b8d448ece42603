from dataclasses import replace

import pytest
import torch

from pipeline.engine.compiled import compiled_draw
from tests.unit.engine.small_steps import objective, samples, warmed

CPU = torch.device("cpu")
FAR = 2**33 + torch.arange(20)  # positions that 32 bits do not hold
SIZE = 4, 4


def same(a, b):
    return all(torch.equal(x, y) if torch.is_tensor(x) else x is y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_asked_share_of_captions_is_dropped(share):
    seen = []

    def network(x, c_noise, text, ids_keep):
        seen.append(text)
        return x

    batch = samples(0, 4000).to(CPU)
    objective(caption_dropout=share)(network, batch)
    dropped = (seen[0] == 0).flatten(1).all(1)
    assert dropped.float().mean().item() == pytest.approx(share, abs=0.02)
    assert torch.equal(seen[0][~dropped], batch.text[~dropped])


def test_masked_stages_keep_the_stated_number_of_tokens():
    positions = torch.arange(50)
    assert objective(mask_ratio=0.0).kept_tokens(positions, 16) is None
    kept = objective(mask_ratio=0.7).kept_tokens(positions, 16)
    assert kept.shape == (50, 4)  # int(16 · 0.3)
    assert len(set(map(tuple, kept.tolist()))) > 40
    assert (kept.diff(dim=1) > 0).all() and kept.min() == 0 and kept.max() == 15


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
def test_random_numbers_follow_the_position_of_a_sample(mask_ratio):
    draw = objective(mask_ratio=mask_ratio).draw
    whole = draw(FAR, *SIZE)
    for size in (1, 3, 20):
        parts = [draw(part, *SIZE) for part in FAR.split(size)]
        joined = [None if pieces[0] is None else torch.cat(pieces) for pieces in zip(*parts, strict=True)]
        assert same(joined, whole)
    turned = draw(FAR.flip(0), *SIZE)
    assert same([None if x is None else x.flip(0) for x in turned], whole)


@pytest.mark.parametrize("change", [{"seed": 4}, {"name": "other"}])
def test_another_seed_or_stage_means_other_numbers(change):
    here = objective()
    there = replace(here, recipe=replace(here.recipe, **change))
    for a, b in zip(here.draw(FAR, *SIZE), there.draw(FAR, *SIZE), strict=True):
        assert not torch.equal(a, b)
    assert not torch.isclose(here.draw(FAR, *SIZE).normal, there.draw(FAR, *SIZE).normal).any()


def test_purposes_do_not_share_numbers():
    numbers = objective().draw(FAR, *SIZE)
    assert not torch.isclose(numbers.noise.flatten(1), numbers.normal[:, None]).any()
    assert not torch.equal(numbers.drops_caption, objective(caption_dropout=0.5).draw(FAR, *SIZE).normal < 0)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
def test_the_loss_of_a_sample_is_the_same_alone_and_in_a_batch(mask_ratio):
    loss_of, net = objective(mask_ratio=mask_ratio), warmed()
    whole = loss_of(net, samples(96, 8).to(CPU))
    alone = [loss_of(net, part) for part in samples(96, 8).to(CPU).split(1)]
    torch.testing.assert_close(torch.cat([loss.per_image for loss in alone]), whole.per_image, rtol=1e-5, atol=0)
    assert torch.equal(torch.cat([loss.sigma for loss in alone]), whole.sigma)


def test_compiled_numbers_are_the_same_bits(compiler):
    """Traced and decomposed as for a GPU; the kernels are torch's own."""
    loss_of = objective()
    draw = compiled_draw(loss_of, backend="aot_eager")
    for positions in (FAR, FAR + 1000):
        assert same(draw(positions, *SIZE), loss_of.draw(positions, *SIZE))
    assert compiler.utils.counters["stats"]["unique_graphs"] == 1
    batch = samples(96, 8).to(CPU)
    assert same(loss_of(warmed(), batch, draw), loss_of(warmed(), batch))


def test_half_precision_is_used_where_it_is_asked_for():
    batch, net = samples(96, 8).to(CPU), warmed()
    full = objective()(net, batch).mean
    half = replace(objective(), precision=torch.bfloat16)(net, batch).mean
    assert half.dtype == torch.float32 and half != full
    assert half.item() == pytest.approx(full.item(), rel=0.05)
