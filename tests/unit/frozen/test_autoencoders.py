"""Every family of autoencoders, as diffusers itself computes it, with random weights."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch

from pipeline.errors import UserError
from pipeline.frozen.families import computed_in, has_posterior
from pipeline.frozen.models import identity
from pipeline.frozen.vae import load_vae
from tests.unit.frozen import family_models

CPU = torch.device("cpu")
POSTERIOR = ["sd", "sd3"]


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("autoencoders")
    return {name: save(folder / name) for name, save in family_models.AUTOENCODERS.items()}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def plain(folder: Path) -> torch.nn.Module:
    name = json.loads((folder / "config.json").read_text())["_class_name"]
    return getattr(diffusers, name).from_pretrained(folder).eval()


@pytest.mark.parametrize(("name", "channels", "factor"), [("sd", 4, 4), ("sd3", 16, 4), ("tiny", 4, 4), ("deep", 32, 8)])
def test_shape_and_scaling_are_the_configs(
    autoencoders: dict[str, Path], images: torch.Tensor, name: str, channels: int, factor: int
) -> None:
    vae, config = load_vae(str(autoencoders[name]), CPU), plain(autoencoders[name]).config
    assert (vae.channels, vae.factor, vae.scaling) == (channels, factor, config.scaling_factor)
    assert vae.shift == (config.get("shift_factor") or 0)
    assert vae.encode(images).shape == (2, channels, 32 // factor, 32 // factor)


@torch.no_grad()
@pytest.mark.parametrize("name", POSTERIOR)
def test_the_mean_is_the_posteriors_and_a_sample_is_around_it(
    autoencoders: dict[str, Path], images: torch.Tensor, name: str
) -> None:
    vae, model = load_vae(str(autoencoders[name]), CPU), plain(autoencoders[name])
    posterior, shift, scaling = model.encode(images).latent_dist, model.config.shift_factor or 0, model.config.scaling_factor
    torch.testing.assert_close(vae.encode(images), (posterior.mean - shift) * scaling)
    noise = torch.ones_like(posterior.mean)
    torch.testing.assert_close(vae.encode(images, noise) - vae.encode(images), posterior.std * scaling, rtol=1e-4, atol=1e-5)
    assert posterior.std.min() > 0.01 and has_posterior(identity(str(autoencoders[name])))


@torch.no_grad()
@pytest.mark.parametrize(("name", "field"), [("tiny", "latents"), ("deep", "latent")])
def test_without_a_posterior_noise_changes_nothing(
    autoencoders: dict[str, Path], images: torch.Tensor, name: str, field: str
) -> None:
    vae, model = load_vae(str(autoencoders[name]), CPU), plain(autoencoders[name])
    latents = vae.encode(images)
    torch.testing.assert_close(latents, getattr(model.encode(images), field) * model.config.scaling_factor)
    assert torch.equal(latents, vae.encode(images, torch.ones_like(latents)))
    assert not has_posterior(identity(str(autoencoders[name])))


@torch.no_grad()
@pytest.mark.parametrize("name", list(family_models.AUTOENCODERS))
def test_decoding_takes_the_scaling_back(autoencoders: dict[str, Path], images: torch.Tensor, name: str) -> None:
    vae, model = load_vae(str(autoencoders[name]), CPU), plain(autoencoders[name])
    encoded, field = model.encode(images), {"tiny": "latents", "deep": "latent"}.get(name)
    z = getattr(encoded, field) if field else encoded.latent_dist.mean
    expected = (model.decode(z).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(vae.decode(vae.encode(images)), expected, rtol=1e-3, atol=1e-4)
    assert expected.std() > 0.001


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("sd", "float32"), ("sd3", "float32"), ("low_range", "bfloat16"), ("tiny", "bfloat16"), ("deep", "bfloat16")],
)
def test_half_precision_only_where_the_config_lets_it(
    autoencoders: dict[str, Path], images: torch.Tensor, name: str, dtype: str
) -> None:
    ref = str(autoencoders[name])
    whole, half = load_vae(ref, CPU), load_vae(ref, CPU, torch.bfloat16)
    assert (
        half.dtype == getattr(torch, dtype) and computed_in(ref, "bfloat16") == dtype and computed_in(ref, "float32") == "float32"
    )
    a, b = whole.encode(images), half.encode(images)
    assert a.dtype == b.dtype == half.decode(b).dtype == torch.float32
    error = ((a - b).norm() / a.norm()).item()
    assert error < 0.05 and (error == 0) == (dtype == "float32")


def test_a_config_that_does_not_speak_of_it_is_computed_in_float32(autoencoders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(autoencoders["low_range"], tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    del config["force_upcast"]
    (folder / "config.json").write_text(json.dumps(config))
    assert computed_in(str(folder), "bfloat16") == "float32" and load_vae(str(folder), CPU, torch.bfloat16).dtype == torch.float32


def test_activations_beyond_fp16_reach_their_latent(tmp_path: Path, images: torch.Tensor) -> None:
    """What SDXL's autoencoder does: inside are numbers that fp16 has not, the latents are ordinary ones."""
    from safetensors.torch import load_file, save_file

    folder = family_models.save_vae(tmp_path / "large")
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["encoder.conv_in.weight"] *= 1e6  # the first norm takes the factor away again
    save_file(weights, file, {"format": "pt"})
    inside = []
    vae = load_vae(str(folder), CPU, torch.bfloat16)
    vae._model.encoder.conv_in.register_forward_hook(lambda *call: inside.append(call[-1].abs().max()))
    latents = vae.encode(images)
    assert inside[0] > torch.finfo(torch.float16).max and latents.isfinite().all() and latents.abs().max() < 100


def test_other_autoencoders_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(UserError, match=r"is a VQModel; models\.vae takes AutoencoderKL, AutoencoderTiny, AutoencoderDC"):
        load_vae(str(tmp_path), CPU)
