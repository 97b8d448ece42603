"""The training step on a CUDA device: `python -m pytest tests/gpu -m gpu`."""

from dataclasses import replace

import pytest
import torch

from pipeline.diffusion import EDM
from pipeline.engine.batch import Batch
from pipeline.engine.compiled import compiled_graphs, distinct_blocks
from pipeline.engine.objective import Objective
from pipeline.engine.recipe import Recipe
from pipeline.engine.step import Speed, TrainStep
from pipeline.model import PRESETS, MicroDiT, at_resolution

pytestmark = pytest.mark.gpu

GPU, CPU = torch.device("cuda"), torch.device("cpu")
BATCH = 16
CONFIG = at_resolution(PRESETS["small"], 8)


def data():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(BATCH, 4, 8, 8, generator=generator).half()
    text = torch.randn(BATCH, CONFIG.caption_length, CONFIG.caption_channels, generator=generator).half()
    return Batch(torch.arange(BATCH), latents, text)


def train(device, precision=torch.float32, speed=None, microbatch=None, steps=3, config=CONFIG):
    """Weights after a few steps, on the CPU, and the losses of the steps."""
    recipe = Recipe("gpu", 10**6, batch_images=BATCH, mask_ratio=0.5, learning_rate=1e-3, clip_norm=1.0)
    speed = speed or Speed.of(device)
    objective = Objective(EDM(), config, recipe, precision)
    step = TrainStep(MicroDiT(config).to(device), objective, BATCH, speed=speed, microbatch=microbatch)
    losses = [step(data(), BATCH * (n + 1)).losses for n in range(steps)]
    weights = torch.cat([p.detach().cpu().flatten() for p in step.model.parameters()])
    return step, weights, torch.tensor([sum(float(loss.mean) for loss in part) for part in losses])


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch._dynamo.reset()


def test_a_gpu_trains_what_a_cpu_trains():
    _, expected, losses = train(CPU)
    _, found, found_losses = train(GPU)
    assert apart(found, expected) < 1e-4 and apart(found_losses, losses) < 1e-5


def test_compiled_bfloat16_stays_close():
    _, expected, losses = train(GPU, speed=Speed())
    _, found, found_losses = train(GPU, torch.bfloat16)
    assert apart(found, expected) < 2e-2 and apart(found_losses, losses) < 2e-2


def test_as_many_graphs_as_there_are_shapes():
    before = compiled_graphs()
    train(GPU, torch.bfloat16, speed=Speed(compile=True), microbatch=BATCH)
    assert compiled_graphs() - before == distinct_blocks(CONFIG, 0.5) + 1  # and the random numbers


def test_no_step_waits_for_the_device():
    step, _, _ = train(GPU, torch.bfloat16, microbatch=BATCH // 2)
    batch = Batch(*(tensor.pin_memory() for tensor in data()))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(batch, 4 * BATCH)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_microbatches_are_as_large_as_fit(monkeypatch):
    step, _, _ = train(GPU, torch.bfloat16, steps=1)
    assert step.microbatch == BATCH
    large = replace(PRESETS["tiny2"], depth=2, mixer_depth=1)
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(int(0.97 * free), dtype=torch.uint8, device=GPU)
    recipe = Recipe("gpu", 10**6, batch_images=512)
    step = TrainStep(MicroDiT(large).to(GPU), Objective(EDM(), large, recipe, torch.bfloat16), 512)
    assert 512 % step.microbatch == 0 and step.microbatch < 512
    del hog
