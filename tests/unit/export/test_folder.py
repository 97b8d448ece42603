import json
from dataclasses import replace

import pytest
import torch

from pipeline.diffusion import EDM
from pipeline.export import load_model_folder, save_model_folder
from pipeline.model import PRESETS, MicroDiT

SMALL = replace(PRESETS["small"], depth=2)


@pytest.fixture
def folder(tmp_path):
    state = MicroDiT(SMALL, seed=1).state_dict()
    save_model_folder(tmp_path, SMALL, state, {"images_seen": 3}, EDM(p_mean=0.0))
    return tmp_path


def test_round_trip(folder):
    found = load_model_folder(folder)
    assert (found.config, found.edm, found.info) == (SMALL, EDM(p_mean=0.0), {"images_seen": 3})
    expected = MicroDiT(SMALL, seed=1).state_dict()
    assert found.state.keys() == expected.keys()
    assert all(torch.equal(found.state[name], expected[name]) for name in expected)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())


def test_tensors_of_another_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"missing: blocks.1.mlp.w1, "):
        save_model_folder(tmp_path / "x", replace(SMALL, depth=3), MicroDiT(SMALL).state_dict(), {})
    assert not (tmp_path / "x").exists()


def break_json(folder):
    (folder / "config.json").write_text("{")


def misspell(folder):
    card = json.loads((folder / "config.json").read_text())
    card["model"]["dims"] = card["model"].pop("dim")
    (folder / "config.json").write_text(json.dumps(card))


def no_diffusion(folder):
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model": card["model"]}))


def cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:1000])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (break_json, "config.json: not readable JSON"),
        (misspell, "unknown key 'dims'"),
        (no_diffusion, "'diffusion'"),
        (cut, "model.safetensors: not readable"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: not readable"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
    ],
)
def test_damage_is_told_in_one_line(folder, harm, words):
    harm(folder)
    with pytest.raises(ValueError) as caught:
        load_model_folder(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
