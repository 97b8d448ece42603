"""Code that comes with a model runs only when the configuration says so, and then only code that is pinned."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.frozen.captioner import Decoding, load_captioner
from pipeline.frozen.models import identity
from tests.unit.encode.small_shards import picture
from tests.unit.frozen.captioner_models import save_llava

PROMPT = "Describe this image"
COMMIT = "0123456789abcdef" * 2 + "01234567"
CODE = """
from pathlib import Path

from transformers import LlavaConfig, LlavaForConditionalGeneration

Path({marker!r}).touch()


class OwnConfig(LlavaConfig):
    model_type = "own_llava"


class OwnModel(LlavaForConditionalGeneration):
    config_class = OwnConfig
"""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Exists once the model's code ran."""
    return tmp_path / "it ran"


@pytest.fixture
def model(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A LLaVA whose classes come with it. Its code is not copied into the user's cache."""
    from safetensors.torch import save_file
    from transformers import LlavaForConditionalGeneration

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = save_llava(tmp_path / "own")
    weights = LlavaForConditionalGeneration.from_pretrained(folder).state_dict()  # named as the code names them
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change(folder / "config.json", model_type="own_llava", auto_map=classes)
    return folder


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def write(ref: Path | str, remote_code: bool) -> str:
    captioner = load_captioner(str(ref), torch.device("cpu"), [PROMPT], Decoding(8), remote_code=remote_code)
    return captioner.write([picture(0)], ["k0"], PROMPT)[0].text


def test_code_does_not_run_unless_it_may(model: Path, marker: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs the code that comes with it; read that, then set captioning\.remote_code: true"):
        write(model, remote_code=False)
    assert not marker.exists()
    plain = save_llava(tmp_path / "plain")
    assert write(model, remote_code=True) == write(plain, remote_code=False) != ""
    assert marker.exists()


def test_a_processor_does_not_run_code_either(model: Path, marker: Path, tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "plain")
    shutil.copy(model / "own.py", folder)
    change(folder / "processor_config.json", auto_map={"AutoProcessor": "own.OwnProcessor"})
    assert write(folder, remote_code=False) and not marker.exists()


def test_a_model_of_known_class_does_not_run_the_code_beside_it(model: Path, marker: Path) -> None:
    change(model / "config.json", model_type="llava")
    assert write(model, remote_code=False) and not marker.exists()


def test_code_of_a_folder_is_part_of_its_identity(model: Path) -> None:
    before = identity(str(model))["sha256"]
    (model / "own.py").write_text("raise SystemExit")
    assert identity(str(model))["sha256"] != before


@pytest.mark.parametrize("file", ["config.json", "processor_config.json"])
def test_code_from_another_repository_is_refused(model: Path, marker: Path, file: str) -> None:
    change(model / file, auto_map={"AutoConfig": "own.OwnConfig", "AutoProcessor": "someone/else--own.OwnProcessor"})
    with pytest.raises(UserError, match="takes code from someone/else, of which no commit is pinned"):
        write(model, remote_code=True)
    assert not marker.exists()


@pytest.mark.parametrize(("revision", "allowed"), [("main", False), ("0123456", False), (COMMIT, True)])
def test_code_of_a_hub_model_needs_a_commit(
    model: Path, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str, allowed: bool
) -> None:
    """The hub's cache as a download leaves it; no network."""
    repo = tmp_path / "cache" / "models--owner--own"
    shutil.copytree(model, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / revision).write_text(COMMIT)
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "huggingface_hub.file_download.HF_HUB_CACHE"):
        monkeypatch.setattr(name, str(repo.parent), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if allowed:
        assert write(f"hf:owner/own@{revision}", remote_code=True) and marker.exists()
    else:
        with pytest.raises(UserError, match="needs a commit of 40 hex digits as its revision"):
            write(f"hf:owner/own@{revision}", remote_code=True)
        assert not marker.exists()
