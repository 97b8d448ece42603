from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifacts import BLOCK_ROWS, latents_schema
from pipeline.dataset import ArrowShard
from pipeline.encode.shards import Target, block_writer, to_half, to_int8

SHAPE = (2, 1, 3)


def values(start: int, count: int) -> np.ndarray:
    return np.arange(start * 6, (start + count) * 6).reshape(count, *SHAPE).astype(np.float16)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 700), max_size=4))
def test_rows_come_back_in_order_in_blocks_of_fixed_size(tmp_path_factory: pytest.TempPathFactory, batches: list[int]) -> None:
    target = Target(tmp_path_factory.mktemp("shard") / "a.arrow", "latents", "0" * 64)
    done = 0
    with block_writer(target, latents_schema(SHAPE, {})) as writer:
        for count in batches:
            writer.add([f"k{n}" for n in range(done, done + count)], values(done, count))
            done += count
    shard = ArrowShard(target.path, "latent")
    with pa.ipc.open_file(str(target.path)) as file:
        sizes = [file.get_batch(n).num_rows for n in range(file.num_record_batches)]
    assert all(size == BLOCK_ROWS for size in sizes[:-1]) and sum(sizes) == done == len(shard)
    assert shard.keys == [f"k{n}" for n in range(done)]
    assert all(np.array_equal(shard.row(n), values(n, 1)[0]) for n in range(0, done, 97))


def test_a_target_exists_only_for_the_same_input_and_while_it_is_whole(tmp_path: Path) -> None:
    target = Target(tmp_path / "a.arrow", "latents", "a" * 64)
    assert target.existing() is None
    with block_writer(target, latents_schema(SHAPE, {})) as writer:
        writer.add(["k"], values(0, 1))
    assert target.existing() is None  # no sidecar yet
    made = target.describe(1, SHAPE, {"0": "not_finite"}, {"px": 8})
    assert target.existing() == made and made.info["shape"] == [2, 1, 3]
    assert Target(target.path, "latents", "b" * 64).existing() is None


def test_a_failure_while_writing_leaves_the_old_file_without_its_sidecar(tmp_path: Path) -> None:
    target = Target(tmp_path / "a.arrow", "latents", "a" * 64)
    with block_writer(target, latents_schema(SHAPE, {})) as writer:
        writer.add(["k"], values(0, 1))
    target.describe(1, SHAPE, {}, {})
    with pytest.raises(KeyError), block_writer(target, latents_schema(SHAPE, {})) as writer:
        raise KeyError
    assert target.existing() is None and sorted(file.name for file in tmp_path.iterdir()) == ["a.arrow"]


def test_to_half_names_rows_and_leaves_the_others_alone() -> None:
    given_ = torch.tensor([[1.0, 2.0], [np.nan, 1.0], [1e6, 1.0], [np.inf, 0.0], [65504.0, -1.0]])
    half, bad = to_half(given_, 10)
    assert bad == {"11": "not_finite", "12": "fp16_overflow", "13": "not_finite"}
    assert half.dtype == torch.float16 and half.tolist() == [[1, 2], [0, 0], [0, 0], [0, 0], [65504, -1]]


def test_int8_is_within_half_a_step_of_each_token() -> None:
    half = (
        torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1.0, 50.0, 6e4, 0.0])[:, None]
    ).half()
    half = half.nan_to_num(posinf=65504, neginf=-65504)
    small, scales = to_int8(half)
    assert small.dtype == torch.int8 and scales.dtype == torch.float16 and scales.shape == (4, 5)
    error = (small.float() * scales.float()[:, :, None] - half.float()).abs().amax(-1)
    assert (error <= scales.float() * 0.57).all()  # half a step, and 127 times the rounding of the scale
    largest = small.abs().amax(-1)
    assert (largest[:, :4] >= 126).all() and (largest[:, 4] == 0).all() and (scales[:, 4] == 0).all()
    assert torch.equal(to_int8(half[1:2])[0], small[1:2])
