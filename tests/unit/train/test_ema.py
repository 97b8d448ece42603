import torch

from pipeline.model import MicroDiT, MicroDiTConfig
from pipeline.train.ema import Ema

TINY = MicroDiTConfig(
    input_size=2,
    patch_size=1,
    dim=16,
    depth=1,
    head_dim=8,
    multiple_of=8,
    caption_channels=4,
    caption_length=2,
    mixer_depth=1,
    mixer_dim=16,
    num_experts=0,
)


def moved(model, step):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(step)
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_average_is_the_closed_form():
    model = MicroDiT(TINY)
    history, ema = [[parameter.detach().clone() for parameter in model.parameters()]], Ema(model, 0.9, 0)
    for step in range(1, 6):
        history.append(moved(model, 0.1 * step))
        ema.update(10 * step)
    powers = [0.9**5] + [0.1 * 0.9 ** (5 - step) for step in range(1, 6)]
    for place, average in enumerate(ema.model.parameters()):
        expected = sum(power * weights[place].double() for power, weights in zip(powers, history, strict=True))
        assert torch.allclose(average.double(), expected, rtol=1e-5, atol=1e-6)


def test_average_follows_the_weights_until_its_start():
    model = MicroDiT(TINY)
    ema = Ema(model, 0.9, start_images=30)
    for step in (1, 2, 3):
        weights = moved(model, 0.1)
        ema.update(10 * step)
        assert all(torch.equal(a, b) for a, b in zip(ema.model.parameters(), weights, strict=True))
    moved(model, 0.1)
    ema.update(40)
    for average, before, now in zip(ema.model.parameters(), weights, model.parameters(), strict=True):
        assert torch.allclose(average, before + 0.1 * (now - before), atol=1e-6)
    assert [ema.decay(images) for images in (30, 40)] == [0.0, 0.9]


def test_average_is_a_copy_with_the_buffers_and_needs_no_gradient():
    model = MicroDiT(TINY)
    ema = Ema(model, 0.9, 0)
    before = {name: tensor.clone() for name, tensor in ema.model.state_dict().items()}
    moved(model, 1.0)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in ema.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
