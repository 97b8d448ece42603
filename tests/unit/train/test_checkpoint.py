import json
import resource

import pytest
import torch

from pipeline.artifacts import check_room
from pipeline.errors import UserError
from pipeline.train.checkpoint import Checkpoints, State

FULL = dict(
    seconds={"training": 1.5}, rows=[[[0.1, 1e-7, 0.0, 1 / 3], [1.0, 2.0, 0.0, 4.0], 2 / 3, False]], guard=[-0.1, 1e-300, 7.0]
)


def tensors(value):
    return {name: {"w": torch.full((3,), float(value)), "s": torch.tensor(float(value))} for name in ("model", "ema")}


def save(checkpoints, images, **state):
    checkpoints.save(State(images, **state), tensors(images).items(), 32)


def names(checkpoints):
    return [int(path.name) for path in sorted(checkpoints.folder.iterdir())]


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "abc", "abc", keep=2)
    made.prepare()
    return made


def test_a_checkpoint_comes_back_as_it_was(checkpoints):
    assert (checkpoints.newest(), checkpoints.state(0), checkpoints.last_good()) == (0, State(), None)
    state = State(64, skipped=3, best={"images": 32, "validation_loss": 0.1 + 0.2}, **FULL)
    checkpoints.save(state, tensors(0.3).items(), 32)
    assert checkpoints.newest() == 64 and checkpoints.state(64) == state
    loaded = checkpoints.load(64, "ema")
    assert torch.equal(loaded["w"], torch.full((3,), 0.3)) and loaded["s"].shape == ()


def test_the_last_two_are_kept(checkpoints):
    for images in (64, 128, 1024):
        save(checkpoints, images)
    assert names(checkpoints) == [128, 1024]


def test_the_best_and_the_last_good_one_are_kept_beside_them(checkpoints):
    best = {"images": 1, "validation_loss": 0.1}
    for images, skipped_in_row in ((1, 0), (2, 0), (3, 0), (4, 1), (5, 2)):
        save(checkpoints, images, best=best, skipped_in_row=skipped_in_row)
    assert names(checkpoints) == [1, 3, 4, 5] and checkpoints.last_good() == checkpoints.path(3)
    save(checkpoints, 6, best={"images": 6, "validation_loss": 0.05})
    assert names(checkpoints) == [5, 6] and checkpoints.last_good() == checkpoints.path(6)


def of_another_run(folder):
    other = Checkpoints(folder.parent.parent / "b", "b", keep=2)
    other.prepare()
    save(other, 128)
    (folder / "state.json").write_bytes((other.path(128) / "state.json").read_bytes())


STATE_BEGINS = len('{\n "fingerprint": "abc",\n "images": ')  # followed by 128


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "ema.safetensors").write_bytes(b"x"), "ema.safetensors is not what was written"),
        (lambda folder: (folder / "ema.safetensors").open("r+b").truncate(100), "ema.safetensors is not what was written"),
        (lambda folder: flip(folder / "model.safetensors", -1), "model.safetensors is not what was written"),
        (lambda folder: (folder / "model.safetensors").unlink(), "not readable"),
        (lambda folder: (folder / "state.json").unlink(), "not readable"),
        (lambda folder: (folder / "state.json").write_text("{"), "not readable"),
        (lambda folder: (folder / "state.json").write_text("[" * 100_000), "not readable"),
        (lambda folder: (folder / "state.json").write_text('{"images": 128}'), "not readable"),
        (lambda folder: flip(folder / "state.json", STATE_BEGINS + 2), "state.json is not what was written"),
        (of_another_run, "belongs to another run"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(checkpoints, capsys, damage, fault):
    for images in (64, 128):
        save(checkpoints, images)
    damage(checkpoints.path(128))
    assert checkpoints.newest() == 64
    told = capsys.readouterr().err
    assert str(checkpoints.path(128)) in told and fault in told and told.count("\n") == 1
    save(checkpoints, 128)  # the place is free again
    assert checkpoints.newest() == 128
    assert checkpoints.folder.joinpath("000000000128.damaged").is_dir()


def test_what_a_killed_process_left_is_removed(checkpoints):
    for name in (".000000000064.77.part/.state.json.77.part", "snapshots/.a.safetensors.7.part"):
        leftover = checkpoints.folder / name
        leftover.parent.mkdir()
        leftover.write_bytes(b"half")
    save(checkpoints, 64)
    checkpoints.prepare()
    assert [path.name for path in sorted(checkpoints.folder.rglob("*"))][:2] == ["000000000064", "ema.safetensors"]
    assert not list(checkpoints.folder.rglob(".*"))


def test_a_disk_that_fills_up_while_writing_is_a_user_error_and_leaves_nothing(checkpoints):
    """A limit on the size of files stands in for it. What fails first is a tensor file, then state.json."""
    save(checkpoints, 32)
    big, before = {"w": torch.zeros(100)}, resource.getrlimit(resource.RLIMIT_FSIZE)
    for file in (big, {}):
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, before[1]))
        try:
            with pytest.raises(UserError, match=r"000000000064: 1,234 bytes cannot be written .*; make room") as caught:
                checkpoints.save(State(64), [("model", file)], 1234)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "\n" not in str(caught.value) and names(checkpoints) == [32] and checkpoints.newest() == 32


def test_a_disk_without_room_is_seen_before_writing(checkpoints):
    with pytest.raises(UserError, match=r"000000000064: 1,000,000,000,000,000,000 bytes are needed and [\d,]+ free; make room"):
        checkpoints.save(State(64), tensors(1).items(), 10**18)
    assert not any(checkpoints.folder.iterdir())
    check_room(checkpoints.path(64), 1)


def test_state_holds_the_hash_of_every_file(checkpoints):
    save(checkpoints, 64)
    state = json.loads((checkpoints.path(64) / "state.json").read_text())
    assert state["files"].keys() == {"model.safetensors", "ema.safetensors"} and state["fingerprint"] == "abc"
