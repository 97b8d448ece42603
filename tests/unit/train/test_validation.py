import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.artifacts import INDEX, read_json, write_json
from pipeline.config.steps import Settings
from pipeline.dataset import Manifest
from pipeline.diffusion import EDM, normals
from pipeline.engine.objective import Objective
from pipeline.model import MicroDiT
from pipeline.train.data import Samples
from pipeline.train.learner import recipe_of
from pipeline.train.network import architecture
from pipeline.train.validation import Validation
from tests.training import ROWS, TRAINED, toy_values, write_arrow

CPU = torch.device("cpu")
HELD_OUT = sum(ROWS) - TRAINED
SIGMAS = [0.002, 0.5, 3.0, 80.0]


@pytest.fixture
def measure_with(slice_of, manifest):
    """`measure_with(images, batch, precision)`: what is measured of a network with random weights."""
    slice_ = slice_of(mask_ratio=0.5, p_mean=-0.4, p_std=1.1)
    samples = Samples(manifest, slice_.stage, slice_.seed, slice_.name)
    edm = EDM(sigma_data=0.7, p_mean=-0.4, p_std=1.1)

    def make(images=HELD_OUT, batch=64, precision=torch.float32):
        settings = Settings(validation={"images": images, "sigmas": SIGMAS}, runtime={"sample_batch": batch})
        objective = Objective(edm, architecture(slice_, manifest), recipe_of(slice_), precision)
        return Validation(slice_, settings, samples, objective, CPU)

    return make


@pytest.fixture
def model(slice_of, manifest):
    """Its last layer is not zero, as it is in a new one."""
    made = MicroDiT(architecture(slice_of(), manifest), seed=5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


def directly(model, rows, sigma, data=0.7):
    """Equations 7 and 8 of the EDM paper, an image at a time, on the last rows of the toy: those held out."""
    latents, text = (torch.from_numpy(values[TRAINED:].astype(np.float64)) for values in toy_values(sum(ROWS), 4))
    losses = []
    for place, row in enumerate(rows):
        y, noise = latents[row], normals(3, "validation/noise", torch.tensor([place]), 64).double().view(4, 4, 4)
        noisy = y + sigma * noise
        total = sigma**2 + data**2
        inputs = (noisy / math.sqrt(total), torch.tensor(math.log(sigma) / 4), text[row])
        out = model(*(value.float()[None] for value in inputs))[0].double()
        denoised = data**2 / total * noisy + sigma * data / math.sqrt(total) * out
        losses.append(float(total / (sigma * data) ** 2 * ((denoised - y) ** 2).mean()))
    return sum(losses) / len(losses)


@torch.no_grad()
@pytest.mark.parametrize(("images", "rows"), [(HELD_OUT, range(HELD_OUT)), (500, range(HELD_OUT)), (4, (0, 2, 5, 7))])
def test_the_loss_is_that_of_the_formula_at_every_noise_level(measure_with, model, images, rows):
    found = measure_with(images).measure(model)
    assert list(found["validation_by_sigma"]) == ["0.002", "0.5", "3", "80"]
    for sigma, loss in zip(SIGMAS, found["validation_by_sigma"].values(), strict=True):
        assert loss == pytest.approx(directly(model, rows, sigma), rel=1e-3)
    assert found["validation_loss"] == pytest.approx(sum(found["validation_by_sigma"].values()) / 4)


def test_it_is_the_same_every_time_and_for_every_batch(measure_with, model):
    once, again, small = measure_with(), measure_with(), measure_with(batch=3)
    found = once.measure(model)
    torch.rand(7)  # the global generator is not asked
    assert once.measure(model) == again.measure(model) == found
    assert small.measure(model)["validation_loss"] == pytest.approx(found["validation_loss"], rel=1e-5)


def test_nothing_is_left_behind_in_the_model(measure_with, model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_with().measure(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters()) and not model.training


def test_autocast_computes_in_the_precision_of_training(measure_with, model):
    full, half = (measure_with(precision=precision).measure(model) for precision in (torch.float32, torch.bfloat16))
    assert half != full
    for sigma, loss in half["validation_by_sigma"].items():
        assert loss == pytest.approx(full["validation_by_sigma"][sigma], rel=0.05)


def test_the_pass_over_the_data_is_bounded(measure_with, model):
    seen = []
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    measure_with(images=7, batch=3).measure(model)
    hook.remove()
    assert seen == [3, 3, 1] * len(SIGMAS)


def test_a_better_model_scores_better(measure_with, model):
    """The untrained network, which predicts zeros, beats random weights."""
    untrained = MicroDiT(model.config, seed=5)
    assert measure_with().measure(untrained)["validation_loss"] < measure_with().measure(model)["validation_loss"]


def test_without_held_out_samples_there_is_nothing_to_measure(slice_of, toy, tmp_path):
    for file in toy.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    value = read_json(tmp_path / "manifest.json")
    value["files"]["validation"] = write_arrow(
        tmp_path / "validation.arrow", INDEX, [pa.array([], field.type) for field in INDEX]
    )
    write_json(tmp_path / "manifest.json", value)
    manifest, slice_ = Manifest.read(tmp_path / "manifest.json"), slice_of()
    objective = Objective(EDM(), architecture(slice_, manifest), recipe_of(slice_))
    samples = Samples(manifest, slice_.stage, slice_.seed, slice_.name)
    assert Validation(slice_, Settings(), samples, objective, CPU).samples == 0
