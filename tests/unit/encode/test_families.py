"""The real step through every family of autoencoders and text encoders."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.artifacts import read_json, read_sidecar
from pipeline.config.steps import EncodeSlice, Settings
from pipeline.dataset import ArrowShard
from pipeline.encode.encode import run
from pipeline.frozen.text import load_text_encoder
from pipeline.verify.command import faults
from tests.unit.encode.small_shards import picture, write_captions, write_shard
from tests.unit.frozen import family_models

CAPTIONS = {"a": "a red cat", "b": None, "c": "a photo of a green dog of a blue cat", "d": "dog"}
TEXTS = [caption or "" for caption in CAPTIONS.values()]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for kind in ("AUTOENCODERS", "TEXT_ENCODERS"):
        for name, save in getattr(family_models, kind).items():
            save(folder / kind / name)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard that every model encodes: what others made stays beside."""
    root = tmp_path_factory.mktemp("results")
    write_shard(root / "data/photos/00000.json", {key: picture(n) for n, key in enumerate(CAPTIONS)}, CAPTIONS)
    write_captions(root / "captions/photos/00000.json", CAPTIONS)
    return root


def encode(root: Path, vae: Path, text_encoder: Path, **more) -> dict:
    """Info of the sidecar."""
    slice_ = EncodeSlice(vae=str(vae), text_encoder=str(text_encoder), text_tokens=8, resolutions=[32], seed=0, **more)
    inputs = [root / f"{kind}/photos/00000.json" for kind in ("data", "captions")]
    outputs = [root / "latents/photos", root / "text/photos", root / "encoded/photos/00000.json"]
    run(slice_, Settings.model_validate({"runtime": {"encode_batch": 3, "device": "cpu"}}), *inputs, *outputs)
    return read_json(outputs[-1])["info"]


def stored(root: Path, name: str, column: str) -> np.ndarray:
    shard = ArrowShard(read_sidecar(root / "encoded/photos/00000.json", "encoded").file(name), column)
    return np.stack([shard.row(n) for n in range(len(shard))]).astype(np.float32)


@pytest.mark.parametrize(("name", "shape"), [("sd", 4), ("sd3", 16), ("low_range", 4), ("tiny", 4), ("deep", 32)])
def test_every_autoencoder(models: Path, results: Path, name: str, shape: int) -> None:
    side, clip = (4 if name == "deep" else 8), models / "TEXT_ENCODERS/clip"
    before = set(results.rglob("*.arrow"))
    info = encode(results, models / "AUTOENCODERS" / name, clip)
    latents = stored(results, "latents-32", "latent")
    assert info["latents"]["32"]["shape"] == [shape, side, side] and latents.shape == (4, shape, side, side)
    assert info["latents"]["32"]["bad_rows"] == {} and np.abs(latents).sum() > 0 and before < set(results.rglob("*.arrow"))
    assert info["latents"]["32"].get("shift_factor") == (0.0609 if name == "sd3" else None)
    files = set(results.rglob("*.arrow"))
    encode(results, models / "AUTOENCODERS" / name, clip, posterior="mean")
    has_posterior = name in ("sd", "sd3", "low_range")
    assert len(set(results.rglob("*.arrow")) - files) == has_posterior  # the others have one latent an image
    assert np.array_equal(stored(results, "latents-32", "latent"), latents) == (not has_posterior)


@pytest.mark.parametrize("padding", ["attend", "drop"])
@pytest.mark.parametrize("name", list(family_models.TEXT_ENCODERS))
def test_every_text_encoder(models: Path, results: Path, name: str, padding: str) -> None:
    folder = models / "TEXT_ENCODERS" / name
    info = encode(results, models / "AUTOENCODERS/sd", folder, text_padding=padding)
    encoder = load_text_encoder(str(folder), 8, torch.device("cpu"), drop_padding=padding == "drop")
    expected, lengths = encoder.encode(TEXTS)
    np.testing.assert_allclose(stored(results, "text", "tokens"), expected.numpy(), rtol=3e-3, atol=3e-3)
    assert info["text"]["shape"] == [8, 16] and info["text"]["bad_rows"] == {} and lengths.min() >= 1
    assert info["text"].get("tokens_stored") == (int(lengths.sum()) if padding == "drop" else None)


def test_all_of_it_is_as_its_sidecars_say(results: Path) -> None:
    assert faults(results) == []
