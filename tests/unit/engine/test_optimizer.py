import pytest
import torch
from torch import nn

from pipeline.engine.optimizer import AdamW, learning_rate
from tests.unit.engine.small_steps import recipe

TAKE, SKIP = torch.zeros([]), torch.ones([])
FUSED = pytest.mark.parametrize("fused", [True, False])
NUMBERS = dict(learning_rate=0.4, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)


@pytest.mark.parametrize(
    ("changes", "images", "expected"),
    [
        ({}, 10, 0.4),
        ({}, 1000, 0.4),
        ({"warmup_images": 200}, 10, 0.02),
        ({"warmup_images": 200}, 190, 0.38),
        ({"warmup_images": 200}, 200, 0.4),
        ({"warmup_images": 200}, 1000, 0.4),
        ({"schedule": "cosine", "final_lr_ratio": 0.25}, 500, 0.4 * 0.625),
        ({"schedule": "cosine", "final_lr_ratio": 0.25}, 1000, 0.1),
        ({"schedule": "cosine", "final_lr_ratio": 0.25, "warmup_images": 200}, 600, 0.4 * 0.625),
        ({"schedule": "cosine", "final_lr_ratio": 0.25, "warmup_images": 200}, 1000, 0.1),
        ({"schedule": "cosine", "final_lr_ratio": 1.0}, 700, 0.4),
        ({"schedule": "cosine", "warmup_images": 1000}, 1000, 0.4),
    ],
)
def test_learning_rate(changes, images, expected):
    assert learning_rate(recipe(images=1000, learning_rate=0.4, **changes), images) == pytest.approx(expected, rel=1e-12)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 1))


def backward(model, number):
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(number))
    model.zero_grad()
    model(inputs).square().mean().backward()


def trained(steps, model=None, optimizer=None, fused=True, start=0):
    model = model or network()
    optimizer = optimizer or AdamW(model, recipe(**NUMBERS), fused)
    for number in range(start, start + steps):
        backward(model, number)
        optimizer.step(0.01 * (number + 1), optimizer.gradients(), TAKE)
    return model, optimizer


def copies(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@FUSED
def test_steps_are_those_of_torch(fused):
    """With every number of the recipe, on every parameter, at the rate of the step."""
    model, _ = trained(5, fused=fused)
    expected = network()
    theirs = torch.optim.AdamW(expected.parameters(), betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3, fused=fused)
    for number in range(5):
        backward(expected, number)
        theirs.param_groups[0]["lr"] = 0.01 * (number + 1)
        theirs.step()
    assert equal(model.state_dict(), expected.state_dict())
    assert not torch.equal(model[0].weight, network()[0].weight)


@FUSED
@pytest.mark.parametrize("before", [0, 3])
def test_a_skipped_step_leaves_weights_and_state_as_they_are(fused, before):
    model, optimizer = trained(before, fused=fused)
    weights, state = copies(model.state_dict()), copies(optimizer.tensors())
    for damage in (1.0, float("nan"), float("inf")):
        backward(model, 7)
        gradients = [gradient * damage for gradient in optimizer.gradients()]
        optimizer.step(0.1, gradients, SKIP)
    assert equal(model.state_dict(), weights)
    after = optimizer.tensors()
    assert equal({name: after[name] for name in state}, state)
    assert not any(tensor.any() for name, tensor in after.items() if name not in state)  # as if never used
    trained(2, model, optimizer, start=before)
    assert equal(model.state_dict(), trained(before + 2, fused=fused)[0].state_dict())


@FUSED
def test_optimizer_goes_on_from_its_tensors_bit_for_bit(fused):
    model, optimizer = trained(3, fused=fused)
    tensors, weights = copies(optimizer.tensors()), copies(model.state_dict())
    assert tensors["step"] == 3 and len(tensors) == 2 * 6 + 1
    assert tensors["3.weight.exp_avg"].shape == (1, 5)
    straight, _ = trained(2, model, optimizer, start=3)

    again = network()
    again.load_state_dict(weights)
    fresh = AdamW(again, recipe(**NUMBERS), fused)
    given = copies(tensors)
    fresh.load(given)
    assert equal(fresh.tensors(), tensors)
    resumed, _ = trained(2, again, fresh, start=3)
    assert equal(straight.state_dict(), resumed.state_dict())
    assert equal(given, tensors)  # what was loaded is not written to


def test_every_tensor_is_cut_to_the_part_of_its_parameter():
    model, optimizer = trained(1)
    asked = []

    def part(name, tensor):
        asked.append((name, tensor.shape))
        return 2 * tensor

    tensors = copies(optimizer.tensors())
    optimizer.load(tensors, part)
    assert asked == [(name, p.shape) for name, p in model.named_parameters() for _ in range(2)]
    assert torch.equal(optimizer.tensors()["0.bias.exp_avg"], 2 * tensors["0.bias.exp_avg"])


def test_there_is_no_state_before_the_first_step():
    assert trained(0)[1].tensors() == {}


@pytest.mark.parametrize("key", ["3.weight.exp_avg_sq", "0.bias.exp_avg", "step"])
def test_a_missing_tensor_is_named(key):
    _, optimizer = trained(1)
    tensors = optimizer.tensors()
    del tensors[key]
    with pytest.raises(ValueError, match=rf"^{key} is missing$"):
        optimizer.load(tensors)


def test_a_tensor_of_another_shape_is_named():
    _, optimizer = trained(1)
    with pytest.raises(ValueError, match=r"^0\.bias\.exp_avg is of shape \[4\], needed is \[5\]$"):
        optimizer.load(optimizer.tensors() | {"0.bias.exp_avg": torch.zeros(4)})


def test_a_parameter_outside_the_loss_is_named():
    model, optimizer = trained(0)
    backward(model, 0)
    model[3].bias.grad = None
    with pytest.raises(RuntimeError, match=r"^3\.bias took no part in the loss$"):
        optimizer.gradients()
