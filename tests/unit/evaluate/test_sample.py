from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.artifacts import read_json, write_json
from pipeline.errors import UserError
from pipeline.evaluate.evaluate import _load as load_tools
from pipeline.evaluate.sample import Images, Sampler, reconstruct
from pipeline.frozen.text import load_text_encoder
from pipeline.frozen.vae import load_vae
from pipeline.trained import Trained

CPU = torch.device("cpu")
CAPTIONS = ["a red circle", "a blue square", "two stars", "", "شكل أحمر 🟥", "a " * 500, "a green cross"]


@pytest.fixture(scope="module")
def sampler(frozen, stage):
    vae, text_encoder = load_vae(frozen["vae"], CPU), load_text_encoder(frozen["clip"], None, CPU)
    return Sampler(vae, text_encoder, Trained.read(stage).edm, 2, 2.0, 0, CPU, torch.float32)


@pytest.fixture
def draw(sampler, stage):
    return sampler.maker(Trained.read(stage).network(), CAPTIONS)


def complete(folder, draw, batch):
    images = Images(folder, len(CAPTIONS))
    return images.complete(draw, batch, "sampling"), np.stack(list(images)).astype(int)


def test_images_do_not_depend_on_the_batch(tmp_path, draw):
    (made, one), (_, four) = (complete(tmp_path / str(batch), draw, batch) for batch in (1, 4))
    assert made == 7 and one.shape == (7, 32, 32, 3)
    assert abs(one - four).max() <= 1  # sums of another order round differently
    assert all(abs(one[i] - one[j]).max() > 10 for i in range(7) for j in range(i))


def test_what_exists_is_not_drawn_again(tmp_path, draw):
    _, before = complete(tmp_path, draw, 3)
    images, asked = Images(tmp_path, 7), []
    for i in (1, 5):
        images.file(i).unlink()
    kept = images.file(0).stat().st_mtime_ns
    made = images.complete(lambda indices: asked.append(indices) or draw(indices), 3, "sampling")
    assert made == 2 and asked == [[1, 5]] and images.file(0).stat().st_mtime_ns == kept
    assert abs(np.stack(list(images)).astype(int) - before).max() <= 1
    assert images.complete(draw, 3, "sampling") == 0


def test_an_interruption_leaves_whole_files_only(tmp_path, draw):
    def fails_at_the_second_batch(indices):
        if indices[0]:
            raise KeyboardInterrupt
        return draw(indices)

    with pytest.raises(KeyboardInterrupt):
        Images(tmp_path, 7).complete(fails_at_the_second_batch, 3, "sampling")
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    assert [file.name for file in files] == ["000000.png", "000001.png", "000002.png"]
    assert all(Image.open(file).size == (32, 32) for file in files)


def test_folders_stay_small():
    images = Images(Path("x"), 30_000)
    assert str(images.file(12_345)) == "x/012/012345.png"
    with pytest.raises(IndexError):
        images[30_000]


def test_seed_caption_and_guidance_decide_the_image(sampler, stage, draw):
    network = Trained.read(stage).network()
    image = draw([2])
    assert not np.array_equal(draw([6])[0], image[0])
    for changed in (replace(sampler, seed=1), replace(sampler, guidance=1.0), replace(sampler, steps=3)):
        assert not np.array_equal(changed.maker(network, CAPTIONS)([2]), image)
    assert not np.array_equal(sampler.maker(network, ["x"] * 7)([2]), image)


def test_the_untrained_network_depends_on_its_seed_alone(stage):
    trained = Trained.read(stage)
    one, again, other = (trained.untrained(seed).state_dict()["x_embedder.proj.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert not torch.equal(trained.network().state_dict()["x_embedder.proj.weight"], one)


def test_a_reconstruction_does_not_depend_on_its_neighbours(sampler):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    whole = reconstruct(sampler.vae, images)
    assert whole.shape == images.shape and whole.dtype == np.uint8
    assert abs(reconstruct(sampler.vae, images[1:2]).astype(int) - whole[1:2]).max() <= 1


def test_a_folder_that_is_no_stage_is_named(tmp_path, stage):
    with pytest.raises(UserError, match=r"summary.json: not readable JSON"):
        Trained.read(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"summary.json: not a stage's summary \('model'\)"):
        Trained.read(tmp_path)
    (tmp_path / "summary.json").write_text((stage / "summary.json").read_text())
    with pytest.raises(UserError, match=r"ema.safetensors: not readable"):
        Trained.read(tmp_path)
    (tmp_path / "ema.safetensors").write_bytes((stage / "ema.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"ema.safetensors: not readable"):
        Trained.read(tmp_path)


def test_weights_of_another_architecture_are_refused(tmp_path, stage):
    summary = (stage / "summary.json").read_text()
    (tmp_path / "summary.json").write_text(summary.replace('"depth": 2', '"depth": 3'))
    (tmp_path / "ema.safetensors").write_bytes((stage / "ema.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"ema.safetensors: blocks.1.mlp.\S+ has shape .*, the model in summary.json"):
        Trained.read(tmp_path)


@pytest.mark.parametrize("drop", [True, False])
def test_padding_is_dropped_where_training_dropped_it(tmp_path, stage, slice_of, settings, drop):
    summary = read_json(stage / "summary.json")
    write_json(tmp_path / "summary.json", {**summary, "model": {**summary["model"], "drop_text_padding": drop}})
    (tmp_path / "ema.safetensors").symlink_to(stage / "ema.safetensors")
    text, lengths = load_tools(slice_of(), settings, tmp_path).sampler.text_encoder.encode(CAPTIONS)
    padding = torch.arange(text.shape[1]) >= lengths[:, None]
    assert padding.any() and (text[padding] == 0).all() == drop and text[~padding].abs().sum(-1).min() > 0
