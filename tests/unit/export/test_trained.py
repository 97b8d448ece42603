import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.diffusion import EDM
from pipeline.errors import UserError
from pipeline.export import load_model_folder, save_model_folder
from pipeline.export.generate import run as draw
from pipeline.export.trained import export_checkpoint, import_checkpoint, run
from pipeline.model import PRESETS, MicroDiT
from tests.unit.frozen.small_models import save_clip, save_vae

SAMPLER = {"steps": 9, "guidance": 2.0}
HUB = "hf:someone/some-vae@" + "0123456789" * 4


def test_the_averaged_weights_become_a_model_folder(stage_folder, tmp_path, small_config, random_state):
    run(stage_folder, tmp_path / "model", SAMPLER)
    found = load_model_folder(tmp_path / "model")
    assert found.config == small_config
    assert found.edm == EDM(sigma_data=0.7, p_mean=0.0)
    assert all(torch.equal(found.state[name], value) for name, value in random_state.items())
    assert found.info["px"] == 16
    assert found.info["sampler"] == SAMPLER
    assert found.info["frozen"] == {"vae": "embedded:vae", "text_encoder": "embedded:clip"}
    assert found.info["trained"]["images"] == 1000
    assert found.info["trained"]["fingerprint"] == "abcdef012345"


def _drop(key):
    def spoil(folder):
        card = json.loads((folder / "summary.json").read_text())
        del card[key]
        (folder / "summary.json").write_text(json.dumps(card))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "summary.json").unlink(), r"summary\.json: not readable JSON"),
        (_drop("model"), r"summary\.json: not a stage's summary \('model'\)"),
        (_drop("images_seen_total"), r"summary\.json: not a stage's summary"),
        (lambda folder: (folder / "ema.safetensors").write_bytes(b"half a fi"), r"ema\.safetensors: not readable"),
        (lambda folder: (folder / "ema.safetensors").unlink(), r"ema\.safetensors: not readable"),
    ],
)
def test_a_broken_stage_is_named_and_nothing_is_written(stage_folder, tmp_path, spoil, told):
    spoil(stage_folder)
    with pytest.raises(UserError, match=told):
        run(stage_folder, tmp_path / "model", SAMPLER)
    assert not (tmp_path / "model").exists()


@pytest.fixture(scope="module")
def official_file(tmp_path_factory):
    """A checkpoint with the official layer-wise scaling, under the prefix of the official trainer."""
    state = MicroDiT(PRESETS["small"], seed=3).state_dict()
    path = tmp_path_factory.mktemp("official") / "small.pt"
    torch.save({"state": {"model": {f"dit.{name}": value for name, value in state.items()}}}, path)
    return path


def test_official_checkpoints_come_in_and_go_out_bit_for_bit(official_file, tmp_path):
    import_checkpoint(official_file, tmp_path / "model", vae=HUB, text_encoder="embedded:clip")
    found = load_model_folder(tmp_path / "model")
    assert found.info["frozen"]["vae"] == found.frozen["vae"] == HUB
    assert found.info["sampler"] == {"steps": 30, "guidance": 5.0}
    assert found.info["px"] == 8 * found.config.input_size
    assert found.info["trained"]["imported"] == "small.pt"
    assert "imported from the checkpoint small.pt" in (tmp_path / "model" / "README.md").read_text()
    export_checkpoint(tmp_path / "model", tmp_path / "again.pt")
    before = torch.load(official_file, weights_only=True)["state"]["model"]
    after = torch.load(tmp_path / "again.pt", weights_only=True)
    assert {f"dit.{name}" for name in after} == set(before)
    assert all(torch.equal(value, before[f"dit.{name}"]) for name, value in after.items())


def test_frozen_models_that_are_not_given_stay_open(official_file, tmp_path):
    import_checkpoint(official_file, tmp_path / "model", vae="", text_encoder="")
    assert load_model_folder(tmp_path / "model").frozen == {"vae": None, "text_encoder": None}


@pytest.mark.parametrize("option", ["vae", "text_encoder"])
def test_a_reference_without_a_commit_is_refused(official_file, tmp_path, option):
    given = {"vae": "", "text_encoder": "", option: "hf:someone/some-model"}
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')}: 'hf:someone/some-model' must be hf:OWNER/NAME@REVISION"):
        import_checkpoint(official_file, tmp_path / "model", **given)
    assert not (tmp_path / "model").exists()


def test_export_of_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match=r"model_index\.json: not readable JSON"):
        export_checkpoint(tmp_path, tmp_path / "out.pt")


def test_export_to_a_place_that_is_a_file(tmp_path):
    info = {"px": 32, "sampler": SAMPLER, "frozen": {"vae": None, "text_encoder": None}, "trained": {}}
    save_model_folder(tmp_path / "model", PRESETS["small"], MicroDiT(PRESETS["small"]).state_dict(), info)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export_checkpoint(tmp_path / "model", tmp_path / "file" / "out.pt")


@pytest.mark.parametrize("channels", [4, 16])
def test_official_checkpoints_are_drawn_with_and_go_out_again(tmp_path, channels):
    """Reduced in width and depth, with frozen models of the shapes that they need."""
    config = replace(PRESETS["small"], in_channels=channels, caption_length=77)
    torch.save({"state_dict": MicroDiT(config, seed=3).state_dict()}, tmp_path / "small.pt")
    vae, text = save_vae(tmp_path / "vae", channels=channels), save_clip(tmp_path / "clip", tokens=77, width=64)
    import_checkpoint(tmp_path / "small.pt", tmp_path / "model", vae=str(vae), text_encoder=str(text))
    shutil.rmtree(vae)
    shutil.rmtree(text)  # the folder is whole by itself
    sampler = {"steps": 2, "guidance": None, "method": None}
    draw(["one"], tmp_path / "one.png", tmp_path / "model", sampler, seed=0, batch=1, count=1, px=None, device="cpu")
    assert Image.open(tmp_path / "one.png").size == (16, 16)
    export_checkpoint(tmp_path / "model", tmp_path / "again.pt")
    before = torch.load(tmp_path / "small.pt", weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "again.pt", weights_only=True)
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_best_weights_instead_of_the_last(stage_folder, tmp_path, random_state):
    best = {name: value + 1 for name, value in random_state.items()}
    save_file(best, stage_folder / "best.safetensors")
    summary = json.loads((stage_folder / "summary.json").read_text())
    summary["best_by_fid"] = {"images": 320, "fid": 9.0}
    (stage_folder / "summary.json").write_text(json.dumps(summary))
    run(stage_folder, tmp_path / "model", SAMPLER, best=True)
    found = load_model_folder(tmp_path / "model")
    assert all(torch.equal(found.state[name], value) for name, value in best.items())
    assert found.info["trained"]["weights"] == "best" and found.info["trained"]["images"] < 1000
