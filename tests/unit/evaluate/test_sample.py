import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.artifacts import read_json, write_json
from pipeline.diffusion import SAMPLERS
from pipeline.engine.compiled import compiled_graphs
from pipeline.errors import UserError
from pipeline.evaluate.sample import Images, Part, Sampler, reconstruct, work_name
from pipeline.fingerprint import digest
from pipeline.frozen.models import content, identity
from pipeline.frozen.text import load_text_encoder
from pipeline.frozen.vae import load_vae
from pipeline.model import backbone_shapes, mixer_shapes
from pipeline.reals import captions_sha256
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


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.rglob("*.png")}


def test_another_size_of_batches_changes_no_more_than_roundings(tmp_path, draw):
    (made, one), (_, four) = (complete(tmp_path / str(batch), draw, batch) for batch in (1, 4))
    assert made == 7 and one.shape == (7, 32, 32, 3)
    assert abs(one - four).max() <= 1  # sums of another order round differently
    assert all(abs(one[i] - one[j]).max() > 10 for i in range(7) for j in range(i))


def test_what_exists_is_kept_and_what_is_missing_comes_back_to_the_bit(tmp_path, draw):
    complete(tmp_path, draw, 3)
    before, images, asked = contents(tmp_path), Images(tmp_path, 7), []
    for i in (1, 5):
        images.file(i).unlink()
    kept = images.file(0).stat().st_mtime_ns
    made = images.complete(lambda indices: asked.append(indices) or draw(indices), 3, "sampling")
    assert made == 2 and asked == [[0, 1, 2], [3, 4, 5]] and images.file(0).stat().st_mtime_ns == kept
    assert contents(tmp_path) == before
    assert images.complete(draw, 3, "sampling") == 0


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_in_any_order_make_the_same_bytes_as_one_job(tmp_path, draw, parts):
    complete(tmp_path / "one", draw, 2)
    images, made = Images(tmp_path / "many", 7), []
    for number in range(parts, 0, -1):
        made.append(images.complete(draw, 2, "sampling", Part(number, parts)))
    assert contents(images.folder) == contents(tmp_path / "one") and sum(made) == 7
    assert sorted(i for n in range(parts) for batch in images.batches(2, Part(n + 1, parts)) for i in batch) == list(range(7))
    assert max(made) - min(made) <= 3


@pytest.mark.parametrize("text", ["3/2", "0/2", "2", "a/b", "-1/2", "1/2/3", "1/0"])
def test_a_part_that_is_none_is_told(text):
    assert Part.parse("2/3") == Part(2, 3)
    with pytest.raises(UserError, match=rf"--part {text}: give the job's number and how many there are"):
        Part.parse(text)


def test_the_next_folder_is_dealt_out_from_where_the_last_one_ended():
    for batches, parts in [(0, 3), (1, 3), (4, 3), (7, 2), (5, 1)]:
        dealt = [Part(k + 1, parts).after(batches).number - 1 for k in range(parts)]
        assert sorted(dealt) == list(range(parts)) and dealt.index(0) == batches % parts


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


def test_seed_caption_and_all_of_the_sampler_decide_the_image(sampler, stage, draw):
    network = Trained.read(stage).network()
    image = draw([2])
    assert not np.array_equal(draw([6])[0], image[0])
    changes = [{"seed": 1}, {"guidance": 1.0}, {"steps": 3}, {"method": "euler"}, {"method": "dpmpp_2m", "steps": 3}]
    for change in [*changes, {"interval": (0.0, 1.0)}]:
        assert not np.array_equal(replace(sampler, **change).maker(network, CAPTIONS)([2]), image), change
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


@pytest.mark.parametrize("side", [2**31 - 1, 2**63 - 1])
def test_a_stage_whose_model_is_larger_than_any_can_be_is_named(tmp_path, stage, side):
    shutil.copytree(stage, tmp_path, dirs_exist_ok=True)
    summary = read_json(stage / "summary.json")
    summary["model"] |= {"input_size": side, "patch_size": 1}
    write_json(tmp_path / "summary.json", summary)
    with pytest.raises(UserError, match=r"summary.json: its model cannot be built"):
        Trained.read(tmp_path)


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
    text, lengths = Sampler.load(slice_of(), settings, Trained.read(tmp_path)).text_encoder.encode(CAPTIONS)
    padding = torch.arange(text.shape[1]) >= lengths[:, None]
    assert padding.any() and (text[padding] == 0).all() == drop and text[~padding].abs().sum(-1).min() > 0


def test_compiled_images_are_the_same_and_no_batch_is_compiled_twice(tmp_path, sampler, stage, draw):
    """The last batch is filled up. Outside of its interval guidance is a batch of half the size. Keys and values of the
    text lie otherwise in memory for the mixer than for the backbone, so blocks of the two share no graph."""
    torch._dynamo.reset()
    network, before = Trained.read(stage).network(), compiled_graphs()
    graphs = len(set(mixer_shapes(network.config))) + len(set(backbone_shapes(network.config))) + 2  # text block and head
    compiled = replace(sampler, compiled=3, backend="eager")
    _, plain = complete(tmp_path / "plain", draw, 3)
    _, found = complete(tmp_path / "compiled", compiled.maker(network, CAPTIONS), 3)
    assert abs(found - plain).max() <= 1
    assert compiled_graphs() - before == graphs
    complete(tmp_path / "again", compiled.maker(network, CAPTIONS), 3)
    complete(tmp_path / "untrained", compiled.maker(Trained.read(stage).untrained(0), CAPTIONS), 3)
    assert compiled_graphs() - before == graphs
    complete(tmp_path / "interval", replace(compiled, steps=4, interval=(0.0, 1.0)).maker(network, CAPTIONS), 3)
    assert compiled_graphs() - before == 2 * graphs


@pytest.mark.parametrize(("compile_", "compiled"), [("auto", 0), ("off", 0), ("on", 3)])
def test_the_settings_decide_whether_it_is_compiled(slice_of, settings, stage, compile_, compiled):
    chosen = settings.model_copy(update={"runtime": settings.runtime.model_copy(update={"compile": compile_})})
    loaded = Sampler.load(slice_of(), chosen, Trained.read(stage))
    assert (loaded.compiled, loaded.method, loaded.interval) == (compiled, "heun", None)


def test_the_default_sampler_keeps_the_folder_and_another_gets_its_own(slice_of):
    """So that what was drawn before samplers could be chosen stays valid."""
    models = [content(identity(slice_of().models.vae)), content(identity(slice_of().models.text_encoder)), None]
    named = {"weights": "0" * 64, "captions": captions_sha256([]), "sampler": [2, 2.0, 0], "untrained": 5, "models": models}
    of = {name: work_name(slice_of(sampler={"name": name}), "0" * 64, []) for name in SAMPLERS}
    of["interval"] = work_name(slice_of(sampler={"interval": [0.2, 5.0]}), "0" * 64, [])
    assert work_name(slice_of(), "0" * 64, []) == of["heun"] == digest(named)
    assert len(set(of.values())) == 4
    assert work_name(slice_of(features="inception", guidance_sweep=[1.0]), "0" * 64, []) == of["heun"]
