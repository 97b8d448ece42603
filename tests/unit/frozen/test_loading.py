"""Real small models, saved with save_pretrained and loaded as any user's model would be."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.frozen.clip import load_clip
from pipeline.frozen.text import load_text_encoder
from pipeline.frozen.vae import load_vae
from tests.unit.encode.small_shards import picture
from tests.unit.frozen import small_models

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("vae", "clip"):
        getattr(small_models, f"save_{name}")(folder / name)
    return folder


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def normals(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_vae_scales_a_posterior_sample_drawn_with_the_given_normals(models: Path, images: torch.Tensor) -> None:
    from diffusers import AutoencoderKL

    vae, noise = load_vae(str(models / "vae"), CPU), normals(3, 4, 8, 8)
    posterior = AutoencoderKL.from_pretrained(models / "vae").eval().encode(images).latent_dist
    expected = (posterior.mean + posterior.std * noise) * 0.18215
    assert (vae.channels, vae.factor) == (4, 4)
    torch.testing.assert_close(vae.encode(images, noise), expected)


def test_a_latent_does_not_depend_on_its_batch(models: Path, images: torch.Tensor) -> None:
    vae, noise = load_vae(str(models / "vae"), CPU), normals(3, 4, 8, 8)
    alone = torch.cat([vae.encode(images[i : i + 1], noise[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(vae.encode(images, noise), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "latent"),
    [
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, lambda z: (z - 0.25) * 0.5),
        (
            {"scaling_factor": 0.5, "latents_mean": [1.0, 2.0], "latents_std": [2.0, 4.0]},
            lambda z: (z - torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)) * 0.5 / torch.tensor([2.0, 4.0]).reshape(1, 2, 1, 1),
        ),
    ],
)
def test_shifts_and_spreads_of_newer_vaes(tmp_path: Path, images: torch.Tensor, config: dict, latent) -> None:
    from diffusers import AutoencoderKL

    vae = load_vae(str(small_models.save_vae(tmp_path, channels=2, **config)), CPU)
    plain = AutoencoderKL.from_pretrained(tmp_path).eval()
    z = plain.encode(images).latent_dist.mean
    latents = vae.encode(images, torch.zeros(3, 2, 8, 8))
    torch.testing.assert_close(latents, latent(z))
    torch.testing.assert_close(vae.decode(latents), (plain.decode(z).sample / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_decoded_images_are_in_0_to_1(models: Path) -> None:
    decoded = load_vae(str(models / "vae"), CPU).decode(100 * normals(2, 4, 8, 8))
    assert decoded.shape == (2, 3, 32, 32) and decoded.min() >= 0 and decoded.max() <= 1


def test_text_is_the_last_hidden_state_after_the_final_norm(models: Path) -> None:
    from transformers import CLIPModel

    encoder = load_text_encoder(str(models / "clip"), None, CPU)
    tokens, lengths = encoder.encode(["red", "", "a very long caption indeed"])
    assert encoder.shape == (12, 16) and tokens.shape == (3, 12, 16) and lengths.tolist() == [5, 2, 12]
    tower = CLIPModel.from_pretrained(models / "clip").eval().text_model
    ids = small_models.clip_tokenizer()("red").input_ids
    torch.testing.assert_close(tokens[0, :5], tower(torch.tensor([ids])).last_hidden_state[0])


def test_a_cut_caption_keeps_its_end_token(models: Path) -> None:
    encoder = load_text_encoder(str(models / "clip"), 6, CPU)
    cut, lengths = encoder.encode(["abcdefgh"])
    whole, _ = load_text_encoder(str(models / "clip"), None, CPU).encode(["abcdefgh"])
    again, _ = encoder.encode(["abcdzzz"])
    assert encoder.shape == (6, 16) and lengths.tolist() == [6]
    torch.testing.assert_close(cut[0, :5], whole[0, :5])
    torch.testing.assert_close(cut, again)  # four letters between start and end, the rest is cut
    assert not torch.allclose(cut[0, 5], whole[0, 5])


def test_a_text_tower_saved_alone_gives_the_same(models: Path, tmp_path: Path) -> None:
    from transformers import CLIPTextModel

    CLIPTextModel.from_pretrained(models / "clip").save_pretrained(tmp_path)
    small_models.clip_tokenizer().save_pretrained(tmp_path)
    alone, both = (load_text_encoder(str(folder), None, CPU).encode(["blue"])[0] for folder in (tmp_path, models / "clip"))
    assert torch.equal(alone, both)


def test_clip_features_are_those_of_transformers(models: Path) -> None:
    from transformers import AutoImageProcessor, CLIPModel

    clip, plain = load_clip(str(models / "clip"), CPU), CLIPModel.from_pretrained(models / "clip").eval()
    pictures = [picture(n, (50, 36 + n)) for n in range(3)]
    inputs = AutoImageProcessor.from_pretrained(models / "clip")(pictures, return_tensors="pt")
    ids = small_models.clip_tokenizer()(["red", "bb"], padding="max_length", max_length=12, return_tensors="pt").input_ids
    image, text = clip.image_features(clip.pixels(pictures)), clip.text_features(["red", "bb"])
    assert (clip.size, clip.width) == (32, 8) and image.dtype == torch.float32
    torch.testing.assert_close(image, plain.get_image_features(**inputs).pooler_output, rtol=0.02, atol=0.02)
    torch.testing.assert_close(text, plain.get_text_features(ids).pooler_output)


def test_other_classes_are_named(models: Path) -> None:
    def text(ref: str, device: torch.device) -> object:
        return load_text_encoder(ref, None, device)

    wrong = [(load_vae, "clip"), (load_clip, "vae"), (text, "vae")]
    for load, name in wrong:
        ref = str(models / name)
        with pytest.raises(UserError) as caught:
            load(ref, CPU)
        assert ref in str(caught.value) and "\n" not in str(caught.value)


def test_more_tokens_than_positions_are_refused(models: Path) -> None:
    with pytest.raises(UserError, match=r"12 positions; models\.text_tokens must be between 2 and 12, found 13"):
        load_text_encoder(str(models / "clip"), 13, CPU)


def test_missing_parts_are_errors_and_never_random_weights(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(models / "clip", tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if name.endswith("final_layer_norm.weight"))
    save_file({k: v for k, v in weights.items() if k != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"without 1 weights that CLIPTextModel needs, such as \S*final_layer_norm\.weight"):
        load_text_encoder(str(folder), None, CPU)
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be loaded as CLIPTextModel"):
        load_text_encoder(str(folder), None, CPU)


def test_pickled_weights_are_not_read(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "vae", tmp_path / "vae")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded as AutoencoderKL from safetensors"):
        load_vae(str(folder), CPU)


def test_a_missing_tokenizer_is_named(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "clip", tmp_path / "clip", ignore=shutil.ignore_patterns("token*"))
    with pytest.raises(UserError, match="no tokenizer beside the weights"):
        load_text_encoder(str(folder), None, CPU)


def test_hub_models_load_from_the_cache_at_their_commit(models: Path, tmp_path: Path) -> None:
    """The hub's cache as a download leaves it: a whole pipeline with its vae/, and a CLIP; no network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    for repo, source, below in (("pipe", "vae", "vae"), ("clip", "clip", "")):
        snapshot = tmp_path / "hub" / f"models--owner--{repo}" / "snapshots" / commit
        shutil.copytree(models / source, snapshot / below)
    code = f"""
import json, torch
from pipeline.frozen.models import identity
from pipeline.frozen.text import load_text_encoder
from pipeline.frozen.vae import load_vae
vae, clip = (f"hf:owner/{{name}}@{commit}" for name in ("pipe", "clip"))
cpu = torch.device("cpu")
print(json.dumps([identity(vae), load_vae(vae, cpu).factor, load_text_encoder(clip, None, cpu).shape]))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    named, factor, shape = json.loads(run.stdout)
    assert named == {"ref": f"hf:owner/pipe@{commit}", "class": "AutoencoderKL", "revision": commit}
    assert (factor, shape) == (4, [12, 16])


def test_dropped_padding_is_zeros_and_nothing_else_changes(models: Path) -> None:
    whole, dropped = (load_text_encoder(str(models / "clip"), None, CPU, drop) for drop in (False, True))
    (kept, lengths), (cut, same) = (encoder.encode(["red", "", "abcdefghijklmnop"]) for encoder in (whole, dropped))
    assert lengths.tolist() == same.tolist() == [5, 2, 12]
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(cut[row, :length], kept[row, :length])
        assert not cut[row, length:].any() and (length == 12 or kept[row, length:].any())
