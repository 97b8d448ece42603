import copy
import functools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.diffusion import EDM
from pipeline.engine import step as module
from pipeline.engine.compiled import compile_blocks, compiled_draw
from pipeline.engine.guard import HISTORY
from pipeline.engine.objective import Objective
from pipeline.engine.optimizer import learning_rate
from pipeline.engine.step import Alone, Speed, TrainStep
from pipeline.model import MicroDiT, state_layout
from tests.unit.engine.small_steps import CONFIG, IMAGES, distance, flat, make_step, recipe, samples, trained, warmed

CLOSE = 1e-4  # relative, of weights after three steps that move them by 9 %; rounding alone was 1e-5 at most
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plain():
    """Weights and averages after three steps with every optimisation off."""
    return trained(make_step(Speed(fused_adamw=False, foreach_ema=False, attention="math")))


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert distance(a, b) < CLOSE


def assert_far(found, expected):
    """A mistake shows by far more than what rounding is forgiven."""
    for a, b in zip(found, expected, strict=True):
        assert distance(a, b) > 10 * CLOSE


@pytest.mark.parametrize(
    "speed",
    [
        Speed(),
        Speed(fused_adamw=False),
        Speed(foreach_ema=False),
        Speed(joint_text=True),
        Speed(attention="math"),
        Speed(attention="flash"),
    ],
    ids=str,
)
def test_no_switch_changes_what_is_computed(plain, speed):
    assert_close(trained(make_step(speed)), plain)
    assert distance(plain[0], flat(warmed())) > 0.05


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("attention", "fused"), [("auto", True), ("flash", True), ("math", False)])
@pytest.mark.parametrize("size", [IMAGES, 5])
def test_attention_is_that_of_the_switch(attention, fused, size):
    with Names() as names:
        make_step(Speed(attention=attention), microbatch=size)(samples(), IMAGES)
    flash = {name for name in names.seen if "flash_attention" in name}
    assert bool(flash) is fused
    assert any("backward" in name for name in flash) is fused


def test_compilation_changes_nothing(plain, compiler, monkeypatch):
    """Forward and backward traced and decomposed as for a GPU; the kernels are torch's own."""
    monkeypatch.setattr(module, "compile_blocks", functools.partial(compile_blocks, backend="aot_eager"))
    monkeypatch.setattr(module, "compiled_draw", functools.partial(compiled_draw, backend="aot_eager"))
    step = make_step(Speed(compile=True))
    assert_close(trained(step), plain)
    assert compiler.utils.counters["stats"]["unique_graphs"] == 8  # 5 blocks, text, head, random numbers


@pytest.mark.parametrize("size", [6, 5, 1])
def test_microbatches_change_nothing(plain, size):
    assert_close(trained(make_step(microbatch=size)), plain)


def gradients(step):
    for part in samples().split(step.microbatch):
        step.backward(part)
    return torch.cat([parameter.grad.flatten() for parameter in step.model.parameters()])


@pytest.mark.parametrize("size", [6, 5, 1])
def test_microbatches_give_the_gradient_of_the_whole_batch(size):
    whole = make_step()
    loss = whole.objective(whole.model, samples().to(CPU)).mean
    expected = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(whole.model.parameters()))])
    assert distance(gradients(make_step(microbatch=size)), expected) < 1e-5


class Careless(TrainStep):
    """Weights every microbatch alike, the short last one too."""

    def backward(self, part):
        loss = self.objective(self.net, part.to(self.device), self._draw)
        (loss.mean / -(-IMAGES // self.microbatch)).backward()
        return loss


def test_a_wrong_share_of_the_gradient_would_show(plain):
    wrong = make_step(microbatch=5)
    wrong.__class__ = Careless
    assert_far(trained(wrong), plain)
    wrong = make_step(microbatch=5)
    wrong.__class__ = Careless
    assert distance(gradients(wrong), gradients(make_step())) > 1e-3


@pytest.mark.parametrize("place", ["patch_mixer.1", "blocks.1"])
def test_an_expert_that_does_nothing_would_show(plain, place):
    model = warmed()
    model.get_submodule(place).mlp.w2.register_hook(torch.zeros_like)
    model.get_submodule(place).mlp.register_forward_hook(lambda mlp, inputs, output: 0 * output)
    assert_far(trained(make_step(model=model)), plain)


def test_swapped_noise_would_show(plain):
    step = make_step()
    draw = step.objective.draw
    step._draw = lambda positions, *size: draw(positions.flip(0), *size)
    assert_far(trained(step), plain)


@pytest.mark.parametrize("clip_norm", [0.05, 1e6])
@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_those_of_torch(fused, clip_norm):
    """AdamW, clip_grad_norm_ and a loop over the averages, bit for bit."""
    step = make_step(Speed(fused_adamw=fused), clip_norm=clip_norm, warmup_images=3 * IMAGES)
    model = copy.deepcopy(step.model)
    settings = dict(betas=step.recipe.betas, eps=step.recipe.eps, weight_decay=step.recipe.weight_decay)
    adamw = torch.optim.AdamW(model.parameters(), **settings, fused=fused)
    average = [parameter.detach().clone() for parameter in model.parameters()]
    for images in range(IMAGES, 6 * IMAGES, IMAGES):
        measured = step(samples(images - IMAGES), images)
        model.zero_grad()
        step.objective(model, samples(images - IMAGES).to(CPU)).mean.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        adamw.param_groups[0]["lr"] = learning_rate(step.recipe, images)
        adamw.step()
        for kept, parameter in zip(average, model.parameters(), strict=True):
            kept.lerp_(parameter.detach(), 1 - step.recipe.ema_decay)
        assert torch.equal(measured.grad_norm, norm) and measured.skipped == 0
        assert (norm > clip_norm) == (clip_norm < 1)
    assert torch.equal(flat(step.model), flat(model))
    averages = dict(zip((name for name, _ in model.named_parameters()), average, strict=True))
    assert all(torch.equal(step.ema.tensors[name], kept) for name, kept in averages.items())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_sample_costs_one_step_and_nothing_else(fused, bad):
    step, other = (make_step(Speed(fused_adamw=fused)) for _ in range(2))
    trained(step, 2), trained(other, 2)
    weights, state = flat(step.model), {name: tensor.clone() for name, tensor in step.optimizer.tensors().items()}
    guard, batch = step.guard.state(), samples(2 * IMAGES)
    batch.latents[3, 0, 0, 0] = bad
    measured = step(batch, 3 * IMAGES)
    assert measured.skipped == 1 and not measured.grad_norm.isfinite()
    assert torch.equal(flat(step.model), weights) and step.guard.state() == guard
    assert all(torch.equal(tensor, state[name]) for name, tensor in step.optimizer.tensors().items())
    assert all(tensor.isfinite().all() for tensor in step.ema.tensors.values())
    for one in (step, other):
        assert one(samples(3 * IMAGES), 4 * IMAGES).skipped == 0
    assert torch.equal(flat(step.model), flat(other.model))


def test_an_outlier_among_the_gradients_is_skipped():
    step = make_step(skip_norm_factor=5.0)
    step.guard.load([-3.0, 1.0, float(HISTORY)])  # usual is a norm of e⁻³
    measured, before = step(samples(), IMAGES), flat(warmed())
    assert measured.skipped == 1 and measured.grad_norm > 5 * 0.05
    assert torch.equal(flat(step.model), before)


def test_what_a_step_leaves():
    step = make_step(microbatch=5, posthoc_ema=(0.05, 0.1))
    measured = step(samples(), IMAGES)
    assert [len(loss.per_image) for loss in measured.losses] == [5, 5, 2]
    assert not any(value.requires_grad for loss in measured.losses for value in loss)
    expected = make_step().objective(warmed(), samples().to(CPU)).per_image
    torch.testing.assert_close(torch.cat([loss.per_image for loss in measured.losses]), expected, rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in step.model.parameters())
    assert list(step.power_emas) == [0.05, 0.1]
    for average in step.power_emas.values():  # the first step is all there is to average
        assert all(torch.equal(average.tensors[name], p) for name, p in step.model.named_parameters())


def test_an_attempt_leaves_no_trace():
    step, untouched = make_step(posthoc_ema=(0.05,)), make_step(posthoc_ema=(0.05,))
    step._attempt(5)
    assert all(parameter.grad is None for parameter in step.model.parameters())
    assert step.optimizer.tensors() == {} and step.guard.state() == untouched.guard.state()
    for a, b in zip(trained(step), trained(untouched), strict=True):
        assert torch.equal(a, b)


class Among(Alone):
    """One of two processes; the other one has a share of 13 images, which it needs 13 microbatches for."""

    def agree(self, code):
        return max(code, 13)


def test_the_microbatch_is_found_where_none_is_given():
    assert make_step(microbatch=None).microbatch == IMAGES
    assert make_step(microbatch=100).microbatch == IMAGES
    objective = make_step().objective
    assert TrainStep(warmed(), objective, IMAGES, parallel=Among()).microbatch == 1


# No step waits for the device

WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "lift_fresh", "_unique2"}


class Watch(TorchDispatchMode):
    """Fails on what makes the host wait for a GPU: reading a value, shapes that depend on values, copies between the two.
    `torch.tensor(…)` shows as lift_fresh: on a GPU it would be a copy from memory that is not pinned."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITS, f"{name} in a training step"
        out = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            assert (source.device.type, out.device.type) != ("cuda", "cpu"), "copy to the host in a training step"
        return out


@pytest.mark.parametrize("speed", [Speed(), Speed(joint_text=True), Speed(foreach_ema=False)], ids=str)
def test_a_step_reads_no_value(speed):
    step = make_step(speed, microbatch=5, posthoc_ema=(0.05,))
    with Watch():
        for images in (IMAGES, 2 * IMAGES):
            measured = step(samples(), images)
    assert measured.skipped == 0


def test_a_step_that_reads_a_value_would_show():
    step = make_step(Speed(fused_adamw=False))  # its kernels cannot skip by themselves
    with Watch(), pytest.raises(AssertionError, match="_local_scalar_dense in a training step"):
        step(samples(), IMAGES)
    with Watch(), pytest.raises(AssertionError, match="lift_fresh"):
        torch.tensor(1.0)


def on_a_gpu(speed):
    """A step whose tensors have shapes and a device, but no values. Only the backward pass needs a real one."""
    made = {name: torch.empty(shape, device="cuda") for name, shape in state_layout(CONFIG).items()}
    model = MicroDiT.from_state(CONFIG, made).requires_grad_(True)
    step = TrainStep(model, Objective(EDM(), CONFIG, recipe(posthoc_ema=(0.05,))), IMAGES, speed=speed, microbatch=IMAGES)
    batch = samples().to(torch.device("cuda"))
    with Watch():
        loss = step.objective(step.net, batch)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        return loss.mean, *step.update(IMAGES)


def test_nothing_but_the_batch_passes_between_host_and_gpu():
    with FakeTensorMode():
        assert {tensor.device.type for tensor in on_a_gpu(Speed())} == {"cuda"}
        with pytest.raises((AssertionError, DataDependentOutputException)):
            on_a_gpu(Speed(fused_adamw=False))
