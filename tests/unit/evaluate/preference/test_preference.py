"""PickScore on a real small CLIP; the adapters of the two packages on stand-ins that keep to the packages' interfaces."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config.evaluation import Evaluation
from pipeline.errors import UserError
from pipeline.evaluate.preference.hpsv2 import HpsV2
from pipeline.evaluate.preference.scores import load, measure
from pipeline.evaluate.sample import Images
from pipeline.frozen.clip import load_clip
from pipeline.frozen.models import identity

CPU = torch.device("cpu")
CAPTIONS = ["a red circle", "a very long caption " * 20, "شكل"]


@pytest.fixture
def samples(tmp_path):
    images, rng = Images(tmp_path / "samples", 3), np.random.default_rng(0)
    images.complete(lambda indices: rng.integers(0, 256, (len(indices), 40, 40, 3)).astype(np.uint8), 2, "drawing")
    return images


def loaded(name, **keys):
    return load(Evaluation(source="coco", preference=[name], **keys), lambda ref: load_clip(ref, CPU), CPU)[name]


def test_pickscore_is_the_temperature_times_the_cosine(frozen, samples):
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model, pictures, words = (cls.from_pretrained(frozen["clip"]) for cls in (CLIPModel, AutoImageProcessor, AutoTokenizer))
    pixels = pictures(images=[Image.fromarray(image) for image in samples], return_tensors="pt").pixel_values
    tokens = words(CAPTIONS, padding=True, truncation=True, max_length=12, return_tensors="pt").input_ids
    with torch.no_grad():
        shown = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=1)
        asked = torch.nn.functional.normalize(model.get_text_features(tokens).pooler_output, dim=1)
        expected = (model.logit_scale.exp() * (shown * asked).sum(1)).tolist()
    pick = loaded("pickscore", pickscore=frozen["clip"])
    assert pick.scores([samples.file(i) for i in range(3)], CAPTIONS) == pytest.approx(expected, rel=0.02)
    found = measure(pick, samples, CAPTIONS, 2, "pickscore")
    assert found["mean"] == pytest.approx(np.mean(expected), rel=0.02)
    assert found["std_error"] == pytest.approx(np.std(expected, ddof=1) / 3**0.5, rel=0.2)
    assert found["images"] == 3 and found["model"] == identity(frozen["clip"])


@pytest.mark.parametrize(("name", "package"), [("hpsv2", "hpsv2"), ("imagereward", "image-reward")])
def test_a_package_that_is_not_there_is_asked_for(name, package):
    with pytest.raises(
        UserError, match=rf"^evaluation.preference: {name} needs the package {package}, .*`pip install {package}`"
    ):
        loaded(name)


HPSV2 = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, images, tokens):
        features = self.linear(images.mean((2, 3)))
        return {"image_features": torch.nn.functional.normalize(features, dim=1),
                "text_features": torch.nn.functional.normalize(tokens.float(), dim=1)}

model_dict = {}

def initialize_model():
    def to_tensor(picture):
        return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(*picture.size, 3).permute(2, 0, 1) / 255
    model_dict.update(model=Model(), preprocess_val=to_tensor)
"""
TOKENS = """
import torch

def get_tokenizer(name):
    assert name == "ViT-H-14"
    return lambda texts: torch.tensor([[len(text), 1] for text in texts])
"""
REWARD = """
from PIL import Image

def load(name, device):
    assert name == "ImageReward-v1.0"
    return Model()

class Model:
    def score(self, prompt, image_path):
        with Image.open(image_path) as picture:
            return len(prompt) + picture.getpixel((0, 0))[0] / 1000
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Make modules importable, by their name and source."""

    def go(**modules):
        for name, source in modules.items():
            *folders, module = name.split("__")
            folder = tmp_path.joinpath("packages", *folders)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path / "packages"))

    yield go
    for name in [name for name in sys.modules if name.partition(".")[0] in ("hpsv2", "ImageReward")]:
        del sys.modules[name]


def test_hpsv2_puts_the_weights_in_once_and_takes_the_cosine(install, samples, tmp_path):
    install(hpsv2__img_score=HPSV2, hpsv2__src__open_clip=TOKENS)
    weights = {"linear.weight": torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]), "linear.bias": torch.tensor([0.0, 0.1])}
    torch.save({"state_dict": weights}, tmp_path / "hps.pt")
    score = HpsV2(CPU, tmp_path / "hps.pt")
    means = np.stack([image.reshape(-1, 3).mean(0) / 255 for image in samples])[:, :2] + (0, 0.1)
    texts = np.array([[len(text), 1] for text in CAPTIONS])
    cosines = (means * texts).sum(1) / np.linalg.norm(means, axis=1) / np.linalg.norm(texts, axis=1)
    assert score.scores([samples.file(i) for i in range(3)], CAPTIONS) == pytest.approx(cosines.tolist(), abs=1e-5)
    assert score.identity == {"package": "hpsv2", "version": None, "checkpoint": "HPS_v2.1_compressed.pt"}


def test_hpsv2_reads_tensors_alone(install, tmp_path):
    install(hpsv2__img_score=HPSV2, hpsv2__src__open_clip=TOKENS)
    torch.save({"state_dict": {}, "code": print}, tmp_path / "hps.pt")
    with pytest.raises(Exception, match=r"weights_only|Unsupported global"):
        HpsV2(CPU, tmp_path / "hps.pt")


def test_imagereward_scores_a_file_at_a_time(install, samples):
    install(ImageReward=REWARD)
    reward = loaded("imagereward")
    expected = [len(text) + int(image[0, 0, 0]) / 1000 for text, image in zip(CAPTIONS, samples, strict=True)]
    assert reward.scores([samples.file(i) for i in range(3)], CAPTIONS) == pytest.approx(expected)
    assert reward.identity["checkpoint"] == "ImageReward-v1.0"


def test_weights_that_are_not_to_be_had(install):
    install(ImageReward="def load(name, device):\n    raise OSError('no network')\n")
    with pytest.raises(UserError, match=r"^evaluation.preference: imagereward: ImageReward-v1.0 is not to be had \(no network\)"):
        loaded("imagereward")
