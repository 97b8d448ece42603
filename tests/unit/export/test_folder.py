import json
from dataclasses import replace

import pytest
import torch

from pipeline.diffusion import EDM
from pipeline.errors import UserError
from pipeline.export import load_model_folder, save_model_folder
from pipeline.model import PRESETS, MicroDiT

SMALL = replace(PRESETS["small"], depth=2)
INFO = {
    "px": 32,
    "sampler": {"steps": 3, "guidance": 1.5},
    "frozen": {"vae": "embedded:vae", "text_encoder": "embedded:clip"},
    "trained": {"images": 3},
}
HUB = {"vae": "hf:someone/some-vae@" + "0" * 40, "text_encoder": None}


@pytest.fixture
def folder(tmp_path):
    state = MicroDiT(SMALL, seed=1).state_dict()
    save_model_folder(tmp_path / "model", SMALL, state, INFO, EDM(p_mean=0.0))
    return tmp_path / "model"


def test_round_trip(folder):
    found = load_model_folder(folder)
    trained = {"images": 3, "p_mean": 0.0, "p_std": 1.2}
    assert (found.config, found.edm, found.info) == (SMALL, EDM(p_mean=0.0), {**INFO, "trained": trained})
    assert found.frozen == {"vae": str(folder / "vae"), "text_encoder": str(folder / "text_encoder")}
    expected = MicroDiT(SMALL, seed=1).state_dict()
    assert found.state.keys() == expected.keys()
    assert all(torch.equal(found.state[name], expected[name]) for name in expected)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        "model_index.json",
        "pipeline.py",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "transformer/modeling_microdit.py",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert all((folder / name).stat().st_mode & 0o044 == 0o044 for name in files)


def test_the_same_model_gives_the_same_bytes(folder, tmp_path):
    save_model_folder(tmp_path / "again", SMALL, MicroDiT(SMALL, seed=1).state_dict(), INFO, EDM(p_mean=0.0))
    for file in (path for path in folder.rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(folder)).read_bytes(), file


def test_models_of_the_hub_stay_there_and_nothing_old_is_left(folder):
    save_model_folder(folder, SMALL, MicroDiT(SMALL).state_dict(), {**INFO, "frozen": HUB})
    assert load_model_folder(folder).frozen == HUB
    index = json.loads((folder / "model_index.json").read_text())
    assert [index[name] for name in ("vae", "text_encoder", "tokenizer")] == [[None, None]] * 3
    assert not {"vae", "text_encoder", "tokenizer"} & {path.name for path in folder.iterdir()}


def test_a_folder_of_the_old_layout_says_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="a model folder of an older version; export it again"):
        load_model_folder(tmp_path)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_frozen_model_that_is_missing_is_told(tmp_path, part):
    frozen = {**INFO["frozen"], part: str(tmp_path / "nowhere")}
    with pytest.raises(UserError, match=r"model '.*nowhere': no such folder"):
        save_model_folder(tmp_path / "model", SMALL, MicroDiT(SMALL).state_dict(), {**INFO, "frozen": frozen})
    assert not (tmp_path / "model" / "model_index.json").exists()


def test_tensors_of_another_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"missing: blocks.1.mlp.w1, "):
        save_model_folder(tmp_path / "x", replace(SMALL, depth=3), MicroDiT(SMALL).state_dict(), INFO)
    assert not (tmp_path / "x").exists()


def write(name, **changes):
    """Change keys of a file, None takes one out."""

    def harm(folder):
        card = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({key: value for key, value in card.items() if value is not None}))

    return harm


def cut(folder):
    file = folder / "transformer/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def remove(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json: not readable JSON"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), "model_index.json: not the index of a MicroDiT"),
        (write("model_index.json", sampler=None), "model_index.json: not the index of a MicroDiT"),
        (write("model_index.json", _class_name="StableDiffusionPipeline"), "model_index.json: not the index of a MicroDiT"),
        (write("transformer/config.json", architecture={"dims": 3}), "unknown key 'dims'"),
        (write("transformer/config.json", architecture=None), "config.json: not a model's config ('architecture')"),
        (write("scheduler/scheduler_config.json", sigma_data=None), "not an EDM scheduler's config ('sigma_data')"),
        (cut, "diffusion_pytorch_model.safetensors: not readable"),
        (remove("transformer/diffusion_pytorch_model.safetensors"), "diffusion_pytorch_model.safetensors: not readable"),
        (remove("transformer/config.json"), "config.json: not readable JSON"),
        (remove("model_index.json"), "model_index.json: not readable JSON"),
    ],
)
def test_damage_is_told_in_one_line(folder, harm, words):
    harm(folder)
    with pytest.raises(ValueError) as caught:
        load_model_folder(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
