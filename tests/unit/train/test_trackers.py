"""Each tracker for real, on this machine alone: what it wrote is read back."""

import struct
import time

import pytest
from accelerate import PartialState
from PIL import Image

from pipeline.config.steps import Settings
from pipeline.errors import UserError
from pipeline.train.trackers import Trackers, flat

LINES = [
    {"images": 100, "step": 1, "loss": None, "loss_by_noise": [0.5, None, 0.25, 1], "seconds": 1.0},
    {"images": 200, "step": 2, "loss": 0.5, "loss_by_noise": [0.5, 0.25, 0.25, 1], "seconds": 2.0},
    {"images": 200, "validation_loss": 0.75, "validation_by_sigma": {"0.05": 0.5, "20": 1.0}},
    {"images": 300, "step": 3, "loss": float("nan"), "seconds": 3.0},
]
AGAIN = [{"images": 300, "step": 3, "loss": 0.25, "seconds": 9.0}, {"images": 400, "step": 4, "loss": 0.125, "seconds": 10.0}]
CONFIG = {"name": "toy", "stage": {"px": 8, "betas": [0.9, 0.99], "sources": None}}


@pytest.fixture(scope="module", autouse=True)
def local(tmp_path_factory):
    """Before the libraries are imported: they read these once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        PartialState(cpu=True)
        yield


def started(name, folder, images=0, reached=0):
    folder.mkdir(parents=True, exist_ok=True)
    return Trackers(Settings(runtime={"trackers": [name]}), "toy", "0123456789ab", folder, CONFIG, images, reached)


def run_twice(name, folder):
    """A run that came to 300 images and was killed, and one that goes on at 200."""
    folder.mkdir()
    Image.new("RGB", (8, 4), "red").save(folder / "grid.png")
    trackers = started(name, folder)
    for line in LINES:
        trackers.log(line)
        trackers.log_grid(folder / "grid.png", line["images"])
    trackers.finish()
    trackers = started(name, folder, images=200, reached=301)  # one further than what is done again
    for line in AGAIN:
        trackers.log(line)
    trackers.finish()


def test_tensorboard_shows_the_run_that_went_on(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_twice("tensorboard", tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run/tensorboard/toy"))
    events.Reload()
    shown = {tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert shown["loss"] == [(200, 0.5), (300, 0.25), (400, 0.125)]
    assert shown["seconds"] == [(100, 1.0), (200, 2.0), (300, 9.0), (400, 10.0)]
    assert shown["loss_by_noise/1"] == [(200, 0.25)] and shown["validation_by_sigma/0.05"] == [(200, 0.5)]
    assert not {"images", "step"} & set(shown)
    grids = events.Images("samples")
    assert [(grid.step, grid.width, grid.height) for grid in grids] == [(100, 8, 4), (200, 8, 4), (200, 8, 4)]
    assert len(list(tmp_path.rglob("hparams.yml"))) == 1  # resuming adds no run to the list


def records(file):
    """Of a file in LevelDB's log format (7 bytes of header, blocks of 32 KiB), as long as it is one block."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at = file.read_bytes(), 7
    assert len(data) < 2**15
    while at < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        assert kind == 1  # a whole record
        yield Record.FromString(data[at + 7 : at + 7 + length])
        at += 7 + length


def history(file):
    """[{key: JSON}] of what was logged."""
    found = [{item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
             for record in records(file) if record.WhichOneof("record_type") == "history"]  # fmt: skip
    return found


def written(file):
    """The history, once there is any: wandb's own process may write after its run has ended."""
    deadline = time.monotonic() + 60
    while not (found := history(file)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def test_wandb_keeps_the_run_in_a_folder_when_offline(tmp_path, capfd):
    run_twice("wandb", tmp_path / "run")
    first, second = sorted((tmp_path / "run/wandb").glob("offline-run-*"))
    logged = written(first / "run-0123456789ab.wandb")
    assert [(line["_step"], line.get("loss")) for line in logged] == [("100", None), ("200", "0.5"), ("300", None)]
    assert (logged[1]["validation_loss"], logged[1]["validation_by_sigma/20"]) == ("0.75", "1")
    assert [line["_step"] for line in written(second / "run-0123456789ab.wandb")] == ["400"]  # 300 was told before
    assert len(list(first.glob("files/media/images/samples_*.png"))) == 3
    kept = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not [name for name in kept if name.endswith((".py", ".patch", ".diff")) or name == "output.log"]
    assert not [record for record in records(first / "run-0123456789ab.wandb") if record.run.git.remote_url]
    assert "Traceback" not in capfd.readouterr().err


def test_trackio_goes_on_in_the_same_run(tmp_path):
    run_twice("trackio", tmp_path / "run")
    from trackio.sqlite_storage import SQLiteStorage

    assert [run["name"] for run in SQLiteStorage.get_run_records("shoestring")] == ["toy-01234567"]
    logs = SQLiteStorage.get_logs("shoestring", "toy-01234567")
    losses = [(line["step"], line["loss"]) for line in logs if "loss" in line]
    assert losses == [(200, 0.5), (400, 0.125)]  # 300 was told before
    assert {line["validation_by_sigma/20"] for line in logs if "validation_loss" in line} == {1.0}
    assert [line["step"] for line in logs if "samples" in line] == [100, 200, 200, 300]
    assert SQLiteStorage.get_run_config("shoestring", "toy-01234567")["stage/px"] == 8


def test_a_tracker_that_fails_is_left_out_and_training_goes_on(tmp_path, capfd):
    import wandb

    trackers = Trackers(
        Settings(runtime={"trackers": ["wandb", "tensorboard"]}), "toy", "failing", tmp_path, CONFIG, images=0, reached=0
    )
    wandb.finish()  # behind its back
    for line in LINES:
        trackers.log(line)
    trackers.finish()
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("runtime.trackers: ")]
    assert len(told) == 1 and "wandb failed" in told[0] and "left out" in told[0]
    assert list(tmp_path.glob("tensorboard/toy/events*"))


def test_a_tracker_that_cannot_start_is_the_users_to_mend(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(UserError, match=r"runtime\.trackers: tensorboard cannot be started .*; log in, or leave it out"):
        started("tensorboard", tmp_path)


def test_no_tracker_is_the_default(tmp_path):
    trackers = Trackers(Settings(), "toy", "0", tmp_path, CONFIG, images=0, reached=0)
    trackers.log(LINES[0])
    trackers.finish()
    assert list(tmp_path.iterdir()) == []


def test_nested_values_become_one_table():
    assert flat(CONFIG) == {"name": "toy", "stage/px": 8, "stage/betas/0": 0.9, "stage/betas/1": 0.99, "stage/sources": "None"}
