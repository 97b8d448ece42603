import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.frozen.models import content, identity, label, locate, short_id

HUB = "hf:owner/name@" + "a" * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "scaling_factor": 0.5}))
    (model / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    return model


def test_identity_names_reference_class_and_content(folder: Path) -> None:
    found = identity(str(folder))
    assert found["ref"] == str(folder) and found["class"] == "AutoencoderKL" and len(found["sha256"]) == 64
    assert label(found) == f"{folder}@{found['sha256'][:12]}"


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "config.json", "vocab.txt"])
def test_identity_follows_every_file_that_is_read(folder: Path, name: str) -> None:
    before = identity(str(folder))
    (folder / name).write_text('{"_class_name": "AutoencoderKL", "scaling_factor": 0.25}')
    assert content(identity(str(folder))) != content(before)


def test_a_card_a_readme_and_a_move_change_no_path(folder: Path) -> None:
    before = short_id(identity(str(folder)), px=32)
    (folder / "card.json").write_text("{}")
    (folder / "README.md").write_text("new")
    moved = folder.rename(folder.parent / "elsewhere")
    assert short_id(identity(str(moved)), px=32) == before
    assert short_id(identity(str(moved)), px=64) != before


def test_the_autoencoder_of_a_whole_pipeline_is_found(folder: Path) -> None:
    whole = folder.parent / "pipeline"
    whole.mkdir()
    folder.rename(whole / "vae")
    (whole / "model_index.json").write_text("{}")
    place = locate(str(whole))
    assert (place.subfolder, place.class_name) == ("vae", "AutoencoderKL")
    assert len(identity(str(whole))["sha256"]) == 64


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"architectures": ["CLIPModel"], "model_type": "clip"}, "CLIPModel"),
        ({"model_type": "clip"}, "clip"),
        ({}, "model of an unknown class"),
    ],
)
def test_class_name_as_the_library_wrote_it(folder: Path, config: dict, name: str) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    assert identity(str(folder))["class"] == name


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "pytorch_model.bin")
    cases = {
        str(tmp_path / "nowhere"): "no such folder",
        str(tmp_path): "no config.json in this folder",
        str(folder): "no .safetensors in",
        "embedded:nothing": "no such embedded model",
    }
    for ref, words in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            identity(ref)
        assert ref in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_model_that_is_not_cached_is_one_line_when_offline(tmp_path: Path) -> None:
    code = f"from pipeline.frozen.models import identity\nidentity({HUB!r})"
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": ""}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = run.stderr.strip().splitlines()[-1]
    assert "UserError" in last and HUB in last and "local cache" in last


def test_a_branch_is_pinned_to_its_commit(folder: Path, tmp_path: Path) -> None:
    """In the hub's cache, a branch is a file that holds a commit."""
    repo, commit = tmp_path / "hub" / "models--owner--name", "b" * 40
    (repo / "snapshots").mkdir(parents=True)
    folder.rename(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    code = "from pipeline.frozen.models import identity, label; m = identity('hf:owner/name@main')"
    code += "; print(m['revision'], label(m))"
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": ""}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [commit, f"hf:owner/name@{commit[:12]}"]


def test_finding_a_model_imports_no_torch(folder: Path) -> None:
    code = f"import sys; from pipeline.frozen.models import identity; identity({str(folder)!r})"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
