import torch

from pipeline.engine.batch import Batch
from tests.unit.engine.small_steps import samples


def test_microbatches_are_the_batch_in_order():
    batch = samples(40, 7)
    parts = list(batch.split(3))
    assert [len(part.positions) for part in parts] == [3, 3, 1]
    assert all(torch.equal(torch.cat(pieces), whole) for pieces, whole in zip(zip(*parts, strict=True), batch, strict=True))


def test_values_become_float32_and_positions_stay_integers():
    batch = samples(2**33, 2)
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, Batch)
    assert [tensor.dtype for tensor in moved] == [torch.int64, torch.float32, torch.float32]
    assert moved.positions.tolist() == [2**33, 2**33 + 1] and torch.equal(moved.text.half(), batch.text)
