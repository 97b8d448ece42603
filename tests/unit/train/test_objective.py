import pytest
import torch

from pipeline.model import MicroDiT
from pipeline.train.data import Samples
from pipeline.train.learner import Learner
from pipeline.train.network import architecture
from pipeline.train.objective import Objective
from pipeline.train.order import Order
from pipeline.train.processes import Processes

CPU = torch.device("cpu")


@pytest.fixture
def samples(manifest):
    return Samples(manifest, Order(manifest.samples, 3, "toy"))


def objective(slice_, manifest):
    return Objective.of(slice_, architecture(slice_, manifest), torch.float32)


def test_the_asked_share_of_captions_is_dropped(slice_of, manifest, samples):
    batch = samples.batch(0, 4000).to(CPU)
    for share in (0.0, 0.1, 0.5, 1.0):
        text = objective(slice_of(caption_dropout=share), manifest).drop_captions(batch)
        dropped = (text == 0).flatten(1).all(1)
        assert dropped.float().mean().item() == pytest.approx(share, abs=0.02)
        assert torch.equal(text[~dropped], batch.text[~dropped])


def test_masked_stages_keep_the_stated_number_of_tokens(slice_of, manifest):
    positions = torch.arange(50)
    assert objective(slice_of(), manifest).kept_tokens(positions) is None
    kept = objective(slice_of(mask_ratio=0.7), manifest).kept_tokens(positions)
    assert kept.shape == (50, 4)  # int(16 · 0.3)
    assert len(set(map(tuple, kept.tolist()))) > 40


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
def test_random_numbers_follow_the_position_of_a_sample(slice_of, manifest, samples, mask_ratio):
    """A sample's loss is the same alone and inside a batch; another position or stage gives another."""
    slice_ = slice_of(mask_ratio=mask_ratio)
    loss_of, net = objective(slice_, manifest), MicroDiT(architecture(slice_, manifest), seed=1)
    torch.nn.init.normal_(net.final_layer.linear.weight, generator=torch.Generator().manual_seed(0))
    whole = loss_of(net, samples.batch(96, 8).to(CPU))
    alone = [loss_of(net, part) for part in samples.batch(96, 8).to(CPU).split(1)]
    assert torch.allclose(whole.per_image, torch.cat([loss.per_image for loss in alone]), rtol=1e-5)
    assert torch.equal(whole.sigma, torch.cat([loss.sigma for loss in alone]))
    other = objective(slice_of({"name": "other"}, mask_ratio=mask_ratio), manifest)(net, samples.batch(96, 8).to(CPU))
    assert not torch.isclose(whole.sigma, other.sigma).any()


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
def test_microbatches_give_the_weights_of_the_whole_batch(slice_of, manifest, samples, mask_ratio):
    slice_ = slice_of(mask_ratio=mask_ratio)
    learners = [Learner(slice_, objective(slice_, manifest), None, Processes("cpu"), size) for size in (None, 24, 7)]
    for start in (0, 24):
        norms = [learner.step(samples.batch(start, 24), start + 24)[1] for learner in learners]
        assert torch.allclose(norms[0], torch.stack(norms), rtol=1e-4)
    first, whole, cut = [torch.cat([p.detach().flatten() for p in learner.model.parameters()]) for learner in learners]
    assert torch.equal(first, whole)
    assert (first - cut).norm() / first.norm() < 1e-4
