import pytest
import torch
from torch import nn

from pipeline.config.schema import Stage
from pipeline.errors import UserError
from pipeline.train.optimizer import adamw, learning_rate, load_optimizer, optimizer_tensors, set_learning_rate


def stage(**changes):
    return Stage(**dict(px=8, mask_ratio=0, images=1000, batch_images=10, learning_rate=0.4) | changes)


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
    assert learning_rate(stage(**changes), images) == pytest.approx(expected, rel=1e-12)


def trained(steps, model=None, optimizer=None):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 1))
    optimizer = optimizer or adamw(model, stage(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3))
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        set_learning_rate(optimizer, 0.01)
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_adamw_takes_every_number_of_the_stage_and_decays_everything():
    model, optimizer = trained(0)
    (group,) = optimizer.param_groups
    assert group["params"] == list(model.parameters())
    assert (group["betas"], group["eps"], group["weight_decay"], group["lr"]) == ((0.8, 0.95), 1e-6, 0.3, 0.4)


def test_optimizer_goes_on_from_its_tensors_bit_for_bit():
    model, optimizer = trained(3)
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, model).items()}
    assert tensors["step"] == 3 and len(tensors) == 2 * 6 + 1
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    straight, _ = trained(4, model, optimizer)

    again, fresh = trained(0)
    again.load_state_dict(weights)
    load_optimizer(fresh, again, tensors, "here")
    resumed, _ = trained(4, again, fresh)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_a_missing_tensor_is_named():
    model, optimizer = trained(1)
    tensors = optimizer_tensors(optimizer, model)
    del tensors["1.weight.exp_avg_sq"]
    with pytest.raises(UserError, match=r"^parent/o: 1\.weight\.exp_avg_sq is missing; set fresh_optimizer: true$"):
        load_optimizer(optimizer, model, tensors, "parent/o")


def test_a_tensor_of_another_shape_is_named():
    model, optimizer = trained(1)
    tensors = optimizer_tensors(optimizer, model) | {"0.bias.exp_avg": torch.zeros(4)}
    with pytest.raises(UserError, match=r"0\.bias\.exp_avg is of shape \[4\], needed is \[5\]"):
        load_optimizer(optimizer, model, tensors, "parent/o")
