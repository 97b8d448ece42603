"""The tiny frozen models load like any downloaded model and are as good as their cards say.

One file, because importing diffusers and transformers takes longer than all of the tests.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    VisionEncoderDecoderModel,
)

from pipeline.embedded import train_captioner, train_clip, train_vae
from pipeline.embedded.muon import orthogonal
from pipeline.embedded.readout import IGNORE, ReadOut, targets_of
from pipeline.embedded.scenes import draw_scene, render
from pipeline.embedded.training import learning_rate, matrices_and_others, optimise, pixels, scenes_of
from pipeline.embedded.wordpieces import learn_merges

FOLDER = Path(train_vae.__file__).parent
NAMES = ("vae", "clip", "captioner")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(kind, name):
    return kind.from_pretrained(FOLDER / name, local_files_only=True)


@pytest.fixture(scope="module")
def clip():
    return load(CLIPModel, "clip").eval()


@pytest.fixture(scope="module")
def tokenizer():
    return load(CLIPTokenizer, "clip")


# --- files


def test_everything_is_small():
    sizes = [path.stat().st_size for name in NAMES for path in (FOLDER / name).iterdir()]
    assert sum(sizes) <= 6e6
    assert max(sizes) <= 2e6


@pytest.mark.parametrize("name", NAMES)
def test_cards_are_complete(name):
    card = json.loads((FOLDER / name / "card.json").read_text())
    wanted = {"name", "model", "data", "seed", "steps", "batch", "training_seconds", "parameters", "quality"}
    assert wanted <= set(card)
    assert card["name"] == f"embedded:{name}"
    assert card["bytes"] == sum(p.stat().st_size for p in (FOLDER / name).glob("*.safetensors"))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_safetensors_and_text(name):
    assert {path.suffix for path in (FOLDER / name).iterdir()} <= {".json", ".safetensors"}


# --- autoencoder


@pytest.mark.parametrize(("px", "least_db", "least_shape"), [(32, 32, 0.93), (64, 34, 0.97)])
def test_vae_keeps_every_attribute(px, least_db, least_shape):
    vae = load(AutoencoderKL, "vae").eval()
    found = train_vae.measure(vae, seed=31, px=px, count=100)
    assert found["psnr_db"] >= least_db
    for group in found["accuracy"].values():
        assert group["shape"] >= least_shape
        assert min(group[key] for key in ("colour", "position", "background")) >= 0.97
    assert all(0.6 < value < 1.4 for value in found["scaled_latent_std"])


def test_vae_shapes_and_scale():
    vae = load(AutoencoderKL, "vae").eval()
    with torch.no_grad():
        latents = vae.encode(pixels(scenes_of(32, "train", 0, 200, 0.25), 64)).latent_dist.mode()
    assert latents.shape == (200, 4, 8, 8)
    assert (latents * vae.config.scaling_factor).std().item() == pytest.approx(1, abs=0.07)


# --- CLIP


def test_clip_finds_its_captions_and_reads_linearly(clip, tokenizer):
    found = train_clip.measure(clip, tokenizer, seed=33, count=300)
    assert found["image_to_text_of_256"] >= 0.9
    assert found["text_to_image_of_256"] >= 0.9
    for features, least in (("states_mean", 0.95), ("text", 0.95), ("image", 0.8)):
        assert min(found["probe_accuracy"][features].values()) >= least, found


def test_towers_load_alone_and_agree_with_the_whole(clip, tokenizer):
    text, vision = load(CLIPTextModel, "clip").eval(), load(CLIPVisionModelWithProjection, "clip").eval()
    ids = train_clip.token_ids(tokenizer, ["a red circle in the top left on a pink background"])
    image = pixels([draw_scene(34, "train", 0)], 64)
    with torch.no_grad():
        states = text(ids).last_hidden_state
        assert states.shape == (1, 24, 64)
        assert torch.equal(states, clip.text_model(ids).last_hidden_state)
        assert torch.equal(vision(image).image_embeds, clip.get_image_features(image).pooler_output)


def test_the_image_processor_gives_what_clip_was_trained_on():
    scene = draw_scene(34, "train", 1)
    for name in ("clip", "captioner"):
        processed = load(AutoImageProcessor, name)(render(scene), return_tensors="pt").pixel_values
        torch.testing.assert_close(processed, pixels([scene], 64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [CLIPTokenizer, AutoTokenizer])
@pytest.mark.parametrize("name", ["clip", "captioner"])
@pytest.mark.parametrize("text", ["", "🙂🏳️‍🌈", "שלום עולם", "مرحبا", "中文 ไทย", "\x00\t\n", "x" * 10_000, "red " * 10_000])
def test_any_text_becomes_24_known_tokens(kind, name, text):
    tokenizer = load(kind, name)
    ids = tokenizer(text, padding="max_length", truncation=True).input_ids
    assert len(ids) == 24
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id in ids
    assert max(ids) < len(tokenizer)


def test_words_of_captions_are_single_tokens_and_bytes_come_back(tokenizer):
    text = "a large purple triangle in the bottom right"
    assert len(tokenizer(text).input_ids) == len(text.split()) + 2
    for spoken in (text, "🙂 שלום 中文"):
        assert tokenizer.decode(tokenizer(spoken).input_ids, skip_special_tokens=True) == spoken


# --- captioner


def test_captioner_names_what_it_sees():
    model, tokenizer = load(VisionEncoderDecoderModel, "captioner").eval(), load(AutoTokenizer, "captioner")
    found = train_captioner.measure(model, tokenizer, seed=35, count=100)
    for group in ("one_object", "two_objects"):
        for key in ("colour", "shape", "position", "background"):
            assert found[group][key] >= 0.95, found


def test_reading_captions():
    one = train_captioner.read("a small white circle in the center on a pink background")
    assert one == {
        "background": "pink",
        "objects": [{"colour": "white", "shape": "circle", "size": "small", "position": "center"}],
    }
    two = train_captioner.read("in the top left a red cross and in the top right a black square on a teal background")
    assert [item["position"] for item in two["objects"]] == ["top left", "top right"]
    assert train_captioner.read("nothing at all")["objects"][0]["colour"] is None


# --- the code that trained them


def test_training_starts_again_and_leaves_loadable_models(tmp_path, monkeypatch):
    for module, kind in (
        (train_vae, AutoencoderKL),
        (train_clip, CLIPModel),
        (train_captioner, VisionEncoderDecoderModel),
    ):
        name = module.__name__.removeprefix("pipeline.embedded.train_")
        monkeypatch.setattr(module, "measure", lambda *args, **kwargs: {"images": 0})
        for attempt in ("first", "second"):
            module.train(tmp_path / attempt / name, seed=5, steps=2, batch=2)
        kind.from_pretrained(tmp_path / "first" / name, local_files_only=True)
        first, second = (next((tmp_path / a / name).glob("*.safetensors")) for a in ("first", "second"))
        assert first.read_bytes() == second.read_bytes(), name


def test_targets_and_read_out():
    scenes = [draw_scene(36, "train", i, 0.5) for i in range(8)]
    targets = targets_of(scenes, torch.arange(8) < 4)
    assert (targets["size"][4:] == IGNORE).sum() == sum(len(scene.objects) for scene in scenes[4:])
    assert (targets["colour"] > 0).sum() == sum(len(scene.objects) for scene in scenes)
    readout = ReadOut(16)
    assert readout(torch.randn(8, 16))["colour"].shape == (8, 9, 5)
    assert set(readout.accuracy(torch.randn(8, 16), targets)) == {"background", "colour", "shape", "size", "position"}


def test_optimiser_loop_learns_and_tied_weights_count_once():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(5, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 5, bias=False))
    model[2].weight = model[0].weight
    matrices, others = matrices_and_others([model])
    assert [len(matrices), len(others)] == [1, 2]
    words = torch.arange(5)

    def loss_at(step):
        return torch.nn.functional.cross_entropy(model(words), words.roll(1)), {}

    before = loss_at(0)[0].item()
    optimise("toy", matrices, others, loss_at, 60, 0.02, 0.02)
    assert loss_at(0)[0].item() < before / 4
    rates = [learning_rate(step, 100) for step in range(100)]
    assert rates[0] < rates[4] == max(rates) == 1
    assert rates[-1] < 0.02


def test_orthogonal_updates_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((16, 40), (40, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.6 and values.max() < 1.3


def test_merges_end_when_every_word_is_one_piece():
    merges = learn_merges({"red": 5, "bed": 1})
    assert merges[0] == ("e", "d</w>")
    assert np.unique(["".join(pair) for pair in merges]).tolist() == ["bed</w>", "ed</w>", "red</w>"]
