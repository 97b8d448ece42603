import json

import pytest
import torch

from pipeline.errors import UserError
from pipeline.train.checkpoint import Checkpoints, State


def tensors(value):
    return {name: {"w": torch.full((3,), float(value)), "s": torch.tensor(float(value))} for name in ("model", "ema")}


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "abc", "abc", keep=2)
    made.prepare()
    return made


def test_a_checkpoint_comes_back_as_it_was(checkpoints):
    assert (checkpoints.newest(), checkpoints.state(0), checkpoints.last()) == (0, State(), "none")
    state = State(64, {"training": 1.5}, [[0.1] * 9])
    checkpoints.save(state, tensors(0.3))
    assert checkpoints.newest() == 64 and checkpoints.state(64) == state
    loaded = checkpoints.load(64, "ema")
    assert torch.equal(loaded["w"], torch.full((3,), 0.3)) and loaded["s"].shape == ()


def test_the_last_two_are_kept(checkpoints):
    for images in (64, 128, 1024):
        checkpoints.save(State(images), tensors(images))
    assert [path.name for path in sorted(checkpoints.folder.iterdir())] == ["000000000128", "000000001024"]
    assert checkpoints.last().endswith("abc/000000001024")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "ema.safetensors").write_bytes(b"x"), "ema.safetensors is not what was written"),
        (lambda folder: (folder / "model.safetensors").unlink(), "not readable"),
        (lambda folder: (folder / "state.json").write_text("{"), "not readable"),
        (lambda folder: (folder / "state.json").write_text('{"files": {}, "fingerprint": "b", "images": 128}'), "another run"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(checkpoints, capsys, damage, fault):
    for images in (64, 128):
        checkpoints.save(State(images), tensors(images))
    damage(checkpoints.path(128))
    assert checkpoints.newest() == 64
    told = capsys.readouterr().err
    assert str(checkpoints.path(128)) in told and fault in told and told.count("\n") == 1
    checkpoints.save(State(128), tensors(128))  # the place is free again
    assert checkpoints.newest() == 128
    assert checkpoints.folder.joinpath("000000000128.damaged").is_dir()


def test_one_flipped_bit_is_noticed(checkpoints):
    checkpoints.save(State(64), tensors(1))
    file = checkpoints.path(64) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert checkpoints.newest() == 0


def test_what_a_killed_process_left_is_removed(checkpoints):
    leftover = checkpoints.folder / ".000000000064.77.part"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    checkpoints.prepare()
    assert not any(checkpoints.folder.iterdir())


def test_a_checkpoint_that_cannot_be_written_is_a_user_error_and_leaves_nothing(checkpoints):
    with pytest.raises(UserError, match=r"checkpoint cannot be written .*; make room") as caught:
        checkpoints.save(State(64), {"no/such/folder": {"w": torch.zeros(1)}})
    assert "\n" not in str(caught.value) and not any(checkpoints.folder.iterdir())


def test_state_holds_the_hash_of_every_file(checkpoints):
    checkpoints.save(State(64), tensors(1))
    state = json.loads((checkpoints.path(64) / "state.json").read_text())
    assert state["files"].keys() == {"model.safetensors", "ema.safetensors"} and state["fingerprint"] == "abc"
