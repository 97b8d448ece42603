import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.metrics.dino import dino
from pipeline.metrics.features import features

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14))
    folder = tmp_path_factory.mktemp("dino")
    model.save_pretrained(folder)
    return folder, model.eval()


def test_features_are_the_class_token_of_the_normalised_image(saved):
    folder, model = saved
    network = dino(str(folder), CPU)
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
    found = features(network, [image], "clean", CPU)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        expected = model((pixels - mean) / std).last_hidden_state[:, 0]
    assert found.shape == (1, 16) and np.allclose(found, expected, atol=1e-4)
    assert (network.px, network.width) == (224, 16) and len(network.identity) == 64


def test_other_models_are_refused():
    with pytest.raises(UserError, match=r"embedded:clip.*evaluation.dino takes a Dinov2Model"):
        dino("embedded:clip", CPU)
