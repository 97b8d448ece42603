from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.diffusion import EDM
from pipeline.engine import microbatch
from pipeline.engine.microbatch import activation_bytes, divisors_downwards, fitting
from pipeline.engine.objective import Objective
from pipeline.model import PRESETS, MicroDiT, MicroDiTConfig, at_resolution
from tests.unit.engine.small_steps import CONFIG, recipe, samples

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
XL = PRESETS["xl2"]


def saved_bytes(config: MicroDiTConfig, mask_ratio: float) -> int:
    """What autograd really keeps for one image, without the weights."""
    model = MicroDiT(config)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = samples(count=1)
    latents = torch.zeros(1, config.in_channels, config.input_size, config.input_size)
    batch = batch._replace(latents=latents, text=torch.zeros(1, config.caption_length, config.caption_channels))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Objective(EDM(), config, recipe(mask_ratio=mask_ratio))(model, batch)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.75])
@pytest.mark.parametrize(
    "config",
    [
        PRESETS["small"],
        replace(PRESETS["small"], input_size=16, num_experts=0),
        replace(PRESETS["tiny2"], dim=256, mixer_dim=192, depth=4, mixer_depth=2, caption_channels=64),
    ],
    ids=["small", "dense", "like tiny2"],
)
def test_the_estimate_is_near_what_is_kept(config, mask_ratio):
    assert 1 / 1.5 < activation_bytes(config, mask_ratio) / saved_bytes(config, mask_ratio) < 1.5


def test_the_estimate_grows_with_all_that_grows():
    base = activation_bytes(XL, 0.75)
    assert base < activation_bytes(XL, 0.5) < activation_bytes(XL, 0.0) < activation_bytes(at_resolution(XL, 64), 0.0)
    assert base < activation_bytes(at_resolution(XL, 64), 0.75)
    for change in ({"dim": 2048}, {"depth": 40}, {"mixer_depth": 8}, {"caption_length": 128}, {"expert_capacity": 3.0}):
        assert base < activation_bytes(replace(XL, **change), 0.75), change


@pytest.mark.parametrize(("share", "sizes"), [(1, [1]), (12, [12, 6, 4, 3, 2, 1]), (13, [13, 1]), (8, [8, 4, 2, 1])])
def test_sizes_cut_the_share_into_equal_parts(share, sizes):
    assert list(divisors_downwards(share)) == sizes


def test_without_an_attempt_the_estimate_decides_the_same_every_time(monkeypatch):
    assert fitting(12, CONFIG, 0.5, CPU) == fitting(12, CONFIG, 0.5, CPU) == 12
    image = activation_bytes(CONFIG, 0.5)
    for images, size in ((5, 4), (4, 4), (3.9, 3), (0.1, 1)):
        monkeypatch.setattr(microbatch, "memory_bytes", lambda device, images=images: int(4 * images * image) + 4)
        assert fitting(12, CONFIG, 0.5, CPU) == size


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(microbatch, "memory_bytes", lambda device: 80 * 10**9)
    return CUDA


def up_to(limit, tried):
    """An attempt that runs out of memory above a limit."""

    def attempt(size):
        tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return attempt


@pytest.mark.parametrize(("limit", "sizes"), [(100, [12]), (5, [12, 6, 4]), (1, [12, 6, 4, 3, 2, 1])])
def test_a_gpu_tries_from_the_largest(gpu, limit, sizes):
    tried = []
    assert fitting(12, CONFIG, 0.5, gpu, up_to(limit, tried)) == sizes[-1]
    assert tried == sizes


def test_where_no_image_fits_it_is_told(gpu):
    with pytest.raises(ValueError, match=r"^not even one image of 4² latents fits into the 80 GB of cuda$"):
        fitting(12, CONFIG, 0.5, gpu, up_to(0, []))


def test_sizes_beyond_all_hope_are_not_tried(gpu):
    tried = []
    assert fitting(2048, XL, 0.75, gpu, up_to(300, tried)) == 256
    assert tried == [512, 256]  # every attempt compiles anew


def test_another_error_is_no_lack_of_memory(gpu):
    def attempt(size):
        raise RuntimeError("mismatch")

    with pytest.raises(RuntimeError, match="mismatch"):
        fitting(12, CONFIG, 0.5, gpu, attempt)


def test_what_does_not_fit_in_one_process_is_tried_in_none(gpu):
    """`agree` stands for the other processes: one that runs out above two images."""
    tried = []
    size = fitting(12, CONFIG, 0.5, gpu, up_to(6, tried), lambda code: max(code, int(tried[-1] > 2)) if tried else code)
    assert size == 2 and tried == [12, 6, 4, 3, 2]


def test_memory_of_a_failed_attempt_is_free_when_the_cache_is_emptied(gpu, monkeypatch):
    """A handler that is still running would keep every tensor of the attempt alive."""
    alive = []

    class Activation(nn.Module):
        def __init__(self):
            super().__init__()
            alive.append(self)

        def __del__(self):
            freed.append(None)

    freed, seen = [], []

    def attempt(size):
        held = Activation()
        alive.clear()
        if size > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        del held

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append(len(freed)))
    assert fitting(12, CONFIG, 0.5, gpu, attempt) == 6
    assert seen == [1]
