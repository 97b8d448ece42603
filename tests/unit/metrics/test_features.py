import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.config.running import Downloads
from pipeline.download.retry import Retry
from pipeline.errors import UserError
from pipeline.metrics import features as module
from pipeline.metrics.features import FeatureNetwork, features, inception, inception_file, resizer
from tests.web import HOST, Page, Site, free_port

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


@pytest.fixture
def body():
    return Body().eval()


@pytest.fixture
def script(body, tmp_path, monkeypatch):
    """The bytes of a TorchScript file, whose hash is the one that is asked for, and an empty cache folder."""
    file = tmp_path / "script.pt"
    torch.jit.script(body).save(str(file))
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "INCEPTION_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return file.read_bytes()


@pytest.fixture
def cached(tmp_path):
    return tmp_path / "cache/inception-2015-12-05.pt"


@pytest.fixture
def site(monkeypatch):
    with Site() as running:
        monkeypatch.setattr(module, "INCEPTION_URL", running.url("/inception.pt"))
        yield running


def fetch(**keys):
    return inception_file(Downloads(allow_hosts=[HOST], attempts=2, timeout_seconds=5, **keys), Retry(first=0.01, longest=0.02))


def left(cached):
    return {file.name for file in cached.parent.glob("*") if file.suffix != ".lock"}


def test_inception_is_loaded_from_the_file_whose_hash_is_known(script, body, cached):
    cached.parent.mkdir()
    cached.write_bytes(script)
    image = photos()[-1]
    found = features(inception(CPU), [image], "clean", CPU)
    mean = torch.from_numpy(image).float().mean(dim=(0, 1))
    with torch.no_grad():
        expected = body.layers[2]((mean[None] - 128) / 128).numpy()
    assert found.shape == (1, 2048) and np.allclose(found, expected, atol=1e-4)


def test_it_is_fetched_once(script, site, cached):
    site.add("/inception.pt", script)
    assert fetch() == fetch() == cached and cached.read_bytes() == script
    assert site.hits["/inception.pt"] == 1 and left(cached) == {cached.name}


def test_a_download_that_breaks_off_is_made_up_for(script, site, cached):
    site.add("/inception.pt", script, before=(Page(script, cut=1000),))
    assert fetch().read_bytes() == script


@pytest.mark.parametrize(("page", "words"), [
    (Page(b"malicious pickle"), "wrong_hash"),
    (Page(b"gone", 404), "http_404"),
    (Page(b"x" * 5000, cut=100), "truncated"),
    (Page(drop=True), "connection"),
    (Page(b"x" * 5000), "too_large"),
    (Page(b"x" * 5000, claimed=-1), "too_large"),
])  # fmt: skip
def test_what_is_not_the_file_never_lies_in_its_place(script, site, cached, monkeypatch, page, words):
    if words == "too_large":
        monkeypatch.setattr(module, "INCEPTION_MOST_BYTES", 4000)
    site.pages["/inception.pt"] = page
    with pytest.raises(UserError) as error:
        fetch()
    assert str(cached) in str(error.value) and module.INCEPTION_URL in str(error.value) and words in str(error.value)
    assert "SHOESTRING_CACHE" in str(error.value) and cached.name not in left(cached)


def test_without_a_network_one_line_names_the_file_and_where_it_is(script, cached, monkeypatch):
    monkeypatch.setattr(module, "INCEPTION_URL", f"http://{HOST}:{free_port()}/inception.pt")
    with pytest.raises(UserError) as error:
        fetch()
    assert str(cached) in str(error.value) and module.INCEPTION_URL in str(error.value) and "\n" not in str(error.value)


def test_an_altered_file_is_not_loaded(script, cached):
    cached.parent.mkdir()
    cached.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"sha256 is .*; delete it and run again"):
        inception(CPU)


def test_the_address_is_a_secure_one():
    assert module.INCEPTION_URL.startswith("https://")
