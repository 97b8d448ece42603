"""Snapshots of the averages for post-hoc use, in whole runs."""

import pytest
import torch
from safetensors.torch import load_file

from pipeline.engine.posthoc import Profile
from pipeline.train.snapshots import Snapshots
from tests.training import ends

RULES = {"snapshot_every_images": 96, "checkpoint_every_images": 48, "keep_checkpoints": 1}


@pytest.fixture
def posthoc(slice_of):
    return slice_of(images=240, posthoc_ema=[0.05, 0.1])


def test_snapshots_live_outside_the_last_checkpoints(trainer, posthoc, toy):
    trainer.run(posthoc, toy, **RULES)
    found = Snapshots(trainer.work() / "snapshots").all()
    assert [profile for _, profile in found] == [Profile(n, width) for n in (96, 192, 240) for width in (0.05, 0.1)]
    final = load_file(trainer.work() / "000000000240/power-0.1.safetensors")
    kept = load_file(found[-1][0])
    assert kept.keys() == final.keys() and all(torch.equal(kept[name], final[name].half()) for name in final)
    assert not torch.equal(load_file(found[-2][0])["final_layer.linear.weight"], kept["final_layer.linear.weight"])


def test_snapshots_beyond_the_resumed_point_are_made_again(trainer, posthoc, toy):
    trainer.run(posthoc, toy, **(RULES | {"keep_checkpoints": 9}))
    files = [file for file, _ in Snapshots(trainer.work() / "snapshots").all()]
    before = {file: file.read_bytes() for file in files}
    for path in trainer.checkpoints()[-2:]:  # 192 and 240: the newest is 144
        (path / "state.json").unlink()
    for file in files:
        file.write_bytes(b"not made again")
    (trainer.work() / "snapshots/.000000000192-0.1.safetensors.1.part").write_bytes(b"half")
    trainer.run(posthoc, toy, **RULES)
    assert [file.read_bytes() for file in files[:2]] == [b"not made again"] * 2
    assert [file.read_bytes() for file in files[2:]] == [before[file] for file in files[2:]]
    assert not list(trainer.work().rglob(".*"))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_keep_the_same_snapshots(trainer, posthoc, toy, parallel):
    """Every part that looks on asks both processes for their shards: grids, validation, snapshots, checkpoints."""
    trainer.run(posthoc, toy, name="alone", **RULES)
    rules = RULES | {"parallel": parallel, "samples_every_images": 48}
    assert ends(trainer.start_two(posthoc, toy, deadline=0, **rules)) == [1, 1], trainer.log().read_text()
    assert ends(trainer.start_two(posthoc, toy, **rules)) == [0, 0], trainer.log().read_text()
    for name in ("alone", "run"):
        assert len(Snapshots(trainer.work(name) / "snapshots").all()) == 6
    for one, two in zip(*(Snapshots(trainer.work(name) / "snapshots").all() for name in ("alone", "run")), strict=True):
        assert one[1] == two[1]
        expected, found = load_file(one[0]), load_file(two[0])
        assert all(torch.allclose(expected[name].float(), found[name].float(), atol=2e-3) for name in expected)
