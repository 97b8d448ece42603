import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.artifacts import read_json
from pipeline.errors import UserError
from pipeline.export import load_model_folder
from pipeline.export.trained import run as export
from pipeline.train.posthoc import run
from pipeline.trained import Trained
from tests.training import Trainer

WIDTHS = [0.05, 0.07, 0.1]
BUFFERS = ("pos_embed", "mask_token")


@pytest.fixture(scope="module")
def trained(server, vae, slice_of, toy, tmp_path_factory):
    """A stage in whose last checkpoint all widths lie whole, and of whose snapshots those of 0.07 are gone."""
    trainer = Trainer(server, vae, tmp_path_factory.mktemp("posthoc"))
    trainer.run(slice_of(posthoc_ema=WIDTHS), toy, snapshot_every_images=48, checkpoint_every_images=960)
    for file in trainer.work().glob("snapshots/*-0.07.safetensors"):
        file.unlink()
    return trainer


def tracked(trainer, width):
    return load_file(trainer.work() / f"000000000960/power-{width}.safetensors")


def made(trainer, folder, width, images=None):
    run(trainer.folder / "run/out", width, images, trainer.folder / "run/work", folder)
    return load_file(folder / "ema.safetensors")


def distance(one, other):
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


@pytest.mark.parametrize("width", [0.05, 0.1])
def test_a_width_that_was_tracked_comes_back(trained, tmp_path, width):
    found, average = made(trained, tmp_path, width), tracked(trained, width)
    assert found.keys() == average.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, average[name], rtol=1e-3, atol=1e-5)  # snapshots are float16


def test_a_width_between_is_that_which_training_would_have_tracked(trained, tmp_path):
    found, average = made(trained, tmp_path, 0.07), tracked(trained, 0.07)
    assert distance(found, average) < 0.1 * min(distance(tracked(trained, width), average) for width in (0.05, 0.1))


def test_buffers_are_those_of_the_stage_bit_for_bit(trained, tmp_path):
    found, stage = made(trained, tmp_path, 0.08), load_file(trained.folder / "run/out/ema.safetensors")
    assert all(torch.equal(found[name], stage[name]) for name in BUFFERS)
    assert not torch.equal(found["pos_embed"], found["pos_embed"].half().float())  # so that this test can fail


def test_an_average_at_an_earlier_time(trained, tmp_path):
    found = made(trained, tmp_path, 0.1, images=480)
    snapshot = load_file(trained.work() / "snapshots/000000000480-0.1.safetensors")
    for name in found.keys() - set(BUFFERS):
        torch.testing.assert_close(found[name], snapshot[name].float(), rtol=1e-3, atol=1e-5)
    summary = read_json(tmp_path / "summary.json")
    assert (summary["images_seen"], summary["images_seen_total"]) == (480, 480)


def test_the_folder_is_a_stage_for_evaluation_and_export(trained, tmp_path):
    weights = made(trained, tmp_path / "ema", 0.08)
    stage, summary = read_json(trained.folder / "run/out/summary.json"), read_json(tmp_path / "ema/summary.json")
    assert summary["fingerprint"] != stage["fingerprint"]
    assert {"stage": stage["fingerprint"], "width": 0.08, "images": 960}.items() <= summary["posthoc_ema"].items()
    assert len(summary["posthoc_ema"]["snapshots"]) == 40
    state = Trained.read(tmp_path / "ema").network().state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    export(tmp_path / "ema", tmp_path / "model", {"steps": 9, "guidance": 2.0})
    folder = load_model_folder(tmp_path / "model")
    assert folder.info["trained"]["weights"] == "ema of relative width 0.08"
    assert all(torch.equal(folder.state[name], tensor) for name, tensor in weights.items())


def test_the_workflows_folders_are_found_by_themselves(trained, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "work/train").mkdir(parents=True)
    (tmp_path / "train/low").symlink_to(trained.folder / "run/out")
    (tmp_path / "work/train/low").symlink_to(trained.folder / "run/work")
    run(tmp_path / "train/low", 0.08, None, None, tmp_path / "out")
    assert (tmp_path / "out/ema.safetensors").exists()


@pytest.mark.parametrize(
    ("width", "images", "told"),
    [
        (0.3, None, r"out: relative width 0\.3: give a number above 0 and at most 0\.289"),
        (0.0, None, r"out: relative width 0\.0: give a number above 0"),
        (float("nan"), None, r"out: relative width nan: give a number above 0"),
        (0.08, 500, r"out: no snapshot at 500 images; there are \[48, 96, 144, "),
    ],
)
def test_what_cannot_be_made_is_told(trained, tmp_path, width, images, told):
    with pytest.raises(UserError, match=told):
        made(trained, tmp_path, width, images)
    assert list(tmp_path.iterdir()) == []


def test_a_stage_without_snapshots_is_told(trained, tmp_path):
    with pytest.raises(UserError, match=r"snapshots: no snapshots of .*out; it must be trained with posthoc_ema, for example"):
        run(trained.folder / "run/out", 0.08, None, tmp_path, tmp_path / "out")


def test_the_stage_itself_is_not_written_over(trained):
    out = trained.folder / "run/out"
    before = (out / "ema.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"--out .*: is the stage itself"):
        run(out, 0.08, None, trained.folder / "run/work", out.parent / "work/../out")
    assert (out / "ema.safetensors").read_bytes() == before


def test_a_folder_that_is_no_stage_is_told(tmp_path):
    with pytest.raises(UserError, match=r"summary\.json: not readable JSON"):
        run(tmp_path, 0.08, None, None, tmp_path / "out")
    (tmp_path / "summary.json").write_text(json.dumps({"fingerprint": "x"}))
    with pytest.raises(UserError, match=r"summary\.json: not a stage's summary, it lacks images_seen"):
        run(tmp_path, 0.08, None, None, tmp_path / "out")
