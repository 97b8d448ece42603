import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.errors import UserError
from pipeline.metrics import features as module
from pipeline.metrics.features import FeatureNetwork, features, inception, inception_file, resizer

CPU = torch.device("cpu")


def photos(count=5):
    """Smooth images [H, W, 3] uint8 of several sizes, with some noise."""
    rng = np.random.default_rng(0)
    sizes = [(40, 40), (64, 50), (31, 90), (320, 301), (299, 299)][:count]
    return [rng.integers(0, 256, (height, width, 3)).astype(np.uint8) for height, width in sizes]


def network(px, seed=0):
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 5, 7, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()).eval()
    return FeatureNetwork("test", "hash", px, 20, lambda pixels: layers(pixels / 255))


@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch"])
def test_resizing_is_that_of_clean_fid(mode):
    from cleanfid.resize import build_resizer

    for image in photos():
        ours, theirs = resizer(mode, 299)(image), build_resizer(mode)(image)
        assert ours.dtype == np.float32 and np.array_equal(ours, theirs)


@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch"])
def test_features_are_those_that_clean_fid_takes_of_a_folder(tmp_path, mode):
    from cleanfid.fid import get_folder_features

    small = network(299)
    for i, image in enumerate(photos()):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    theirs = get_folder_features(str(tmp_path), small.extract, num_workers=0, device=CPU, mode=mode, verbose=False)
    assert np.allclose(features(small, photos(), mode, CPU), theirs, atol=1e-6)


def test_clean_resizing_is_antialiased_and_the_other_is_not():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::4] = 255
    smooth, aliased = (resizer(mode, 16)(stripes) for mode in ("clean", "legacy_pytorch"))
    assert smooth.std() < 10 and not np.allclose(smooth, aliased, atol=20)


def test_features_do_not_depend_on_the_batch_and_progress_counts_images():
    counts = []
    one, three = (features(network(32), iter(photos()), "clean", CPU, batch, counts.append) for batch in (1, 3))
    assert one.shape == (5, 20) and one.dtype == np.float32 and np.allclose(one, three, atol=1e-6)
    assert counts == [1] * 5 + [3, 2]


def test_no_images_give_no_rows():
    assert features(network(32), [], "clean", CPU).shape == (0, 20)


def test_a_missing_inception_file_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    with pytest.raises(UserError) as error:
        inception_file()
    assert str(tmp_path / "inception-2015-12-05.pt") in str(error.value) and "https://nvlabs-fi-cdn" in str(error.value)


def test_an_altered_inception_file_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    (tmp_path / "inception-2015-12-05.pt").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"sha256 is .*; delete it and download"):
        inception(CPU)


def test_the_cache_is_the_users_cache_folder_unless_one_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("SHOESTRING_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert module.cache_folder() == tmp_path / "shoestring"


class Body(nn.Module):
    """Has what clean-fid asks of the TorchScript file: `layers`, from [B, 3, 299, 299] in [-1, 1] to [B, 2048]."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2048))

    def forward(self, x):
        return self.layers(x)


def test_inception_is_loaded_from_the_file_whose_hash_is_known(tmp_path, monkeypatch):
    body, file = Body().eval(), tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(body).save(str(file))
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "INCEPTION_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    image = photos()[-1]
    found = features(inception(CPU), [image], "clean", CPU)
    mean = torch.from_numpy(image).float().mean(dim=(0, 1))
    with torch.no_grad():
        expected = body.layers[2]((mean[None] - 128) / 128).numpy()
    assert found.shape == (1, 2048) and np.allclose(found, expected, atol=1e-4)
