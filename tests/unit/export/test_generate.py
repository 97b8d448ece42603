import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import UserError
from pipeline.export import save_model_folder
from pipeline.export.generate import Artist, Drawing, file_name, grid, run

SAMPLER = {"steps": 3, "guidance": 1.5}
DRAWN = {"steps": 2, "guidance": 3.0}
OPTIONS = {"sampler": DRAWN, "seed": 7, "batch": 4, "count": 1, "px": None, "device": "cpu"}


@pytest.fixture
def model(tmp_path, small_config, random_state, frozen_models):
    vae, text_encoder = frozen_models
    save_model_folder(tmp_path / "model", small_config, random_state, info(vae, text_encoder))
    return tmp_path / "model"


def info(vae, text_encoder):
    return {"px": 16, "frozen": {"vae": vae, "text_encoder": text_encoder}, "sampler": SAMPLER, "trained": {}}


def pixels(path):
    return np.asarray(Image.open(path))


def test_one_prompt_is_one_png_that_says_how_it_was_made(model, tmp_path, capsys):
    run(["a red circle, 赤い丸"], tmp_path / "new" / "out.png", model, **OPTIONS)
    picture = Image.open(tmp_path / "new" / "out.png")
    assert (picture.size, picture.mode) == ((16, 16), "RGB")
    assert picture.text == {"prompt": "a red circle, 赤い丸", "seed": "7", "steps": "2", "guidance": "3.0", "px": "16"}
    assert "drawing: 100%" in capsys.readouterr().err
    assert pixels(tmp_path / "new" / "out.png").std() > 0


def test_steps_and_guidance_are_the_models_own_unless_given(model, tmp_path):
    run(["one"], tmp_path / "own.png", model, **{**OPTIONS, "sampler": {"steps": None, "guidance": None, "method": None}})
    assert {"steps": "3", "guidance": "1.5"}.items() <= Image.open(tmp_path / "own.png").text.items()


def test_a_picture_depends_on_prompt_seed_and_number_but_not_on_the_batch(model, tmp_path):
    prompts = ["one", "two", "three"]
    run(prompts, tmp_path / "a", model, **OPTIONS)
    run(prompts, tmp_path / "b", model, **{**OPTIONS, "batch": 1})
    run(["one", "two", "other"], tmp_path / "c", model, **OPTIONS)
    run(prompts, tmp_path / "d", model, **{**OPTIONS, "seed": 8})
    names = ["00000-one.png", "00001-two.png", "00002-three.png"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert np.abs(pixels(tmp_path / "a" / name).astype(int) - pixels(tmp_path / "b" / name)).max() <= 1
        assert not np.array_equal(pixels(tmp_path / "a" / name), pixels(tmp_path / "d" / name))
    assert np.array_equal(pixels(tmp_path / "a" / names[1]), pixels(tmp_path / "c" / names[1]))
    assert not np.array_equal(pixels(tmp_path / "a" / names[2]), pixels(tmp_path / "c" / "00002-other.png"))
    assert not np.array_equal(pixels(tmp_path / "a" / names[0]), pixels(tmp_path / "a" / names[1]))


def test_several_pictures_in_a_png_are_a_grid(model, tmp_path):
    run(["one", "two"], tmp_path / "grid.png", model, **{**OPTIONS, "count": 3})
    run(["one", "two"], tmp_path / "each", model, **{**OPTIONS, "count": 3})
    whole = pixels(tmp_path / "grid.png")
    assert whole.shape == (2 * 16 + 2, 3 * 16 + 4, 3)
    assert np.array_equal(whole[18:, 36:], pixels(tmp_path / "each" / "00005-two.png"))
    assert Image.open(tmp_path / "grid.png").text["prompt"] == "one\ntwo"


def test_another_resolution(model, tmp_path):
    run(["one"], tmp_path / "large.png", model, **{**OPTIONS, "px": 32})
    assert pixels(tmp_path / "large.png").shape == (32, 32, 3)
    with pytest.raises(UserError, match=r"--px 30: must be a multiple of 4; the model was trained at 16"):
        run(["one"], tmp_path / "x.png", model, **{**OPTIONS, "px": 30})


def test_weights_in_half_precision(model, tmp_path, small_config, random_state, frozen_models):
    vae, text_encoder = frozen_models
    halves = {name: value.half() for name, value in random_state.items()}
    save_model_folder(tmp_path / "half", small_config, halves, info(vae, text_encoder))
    for folder in (model, tmp_path / "half"):
        run(["one"], tmp_path / f"{folder.name}.png", folder, **OPTIONS)
    assert np.abs(pixels(tmp_path / "half.png").astype(int) - pixels(tmp_path / "model.png")).max() < 20


def _change(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_model_that_names_no_text_encoder(model, tmp_path):
    nowhere = {"text_encoder": [None, None], "frozen": {"vae": None, "text_encoder": None}}
    _change(model / "model_index.json", **nowhere)
    told = r'model_index\.json: frozen\.text_encoder is not named; put "hf:OWNER/NAME@COMMIT" or a local folder there'
    with pytest.raises(UserError, match=told):
        run(["one"], tmp_path / "x.png", model, **OPTIONS)


def test_a_text_encoder_of_another_width(model, tmp_path):
    _change(model / "model_index.json", text_encoder=[None, None], frozen={"vae": None, "text_encoder": "embedded:clip"})
    with pytest.raises(UserError, match=r"model_index\.json: text_encoder gives 64 values a token, the model takes 16"):
        run(["one"], tmp_path / "x.png", model, **OPTIONS)


def test_another_sampler_and_the_models_own(model, tmp_path):
    for method in ("euler", "dpmpp_2m", "heun"):
        run(["one"], tmp_path / f"{method}.png", model, **{**OPTIONS, "sampler": {**DRAWN, "method": method}})
    assert not np.array_equal(pixels(tmp_path / "euler.png"), pixels(tmp_path / "heun.png"))
    _change(model / "model_index.json", sampler={"steps": 2, "guidance": 3.0, "method": "euler", "interval": None})
    run(["one"], tmp_path / "own.png", model, **{**OPTIONS, "sampler": {}})
    assert np.array_equal(pixels(tmp_path / "own.png"), pixels(tmp_path / "euler.png"))


def test_guidance_between_two_noise_levels(model, tmp_path):
    for name, interval in (("all", None), ("all_too", [0.0, 100.0]), ("none", [90.0, 100.0])):
        _change(model / "model_index.json", sampler={"steps": 2, "guidance": 3.0, "interval": interval})
        run(["one"], tmp_path / f"{name}.png", model, **{**OPTIONS, "sampler": {}})
    assert np.array_equal(pixels(tmp_path / "all.png"), pixels(tmp_path / "all_too.png"))
    assert not np.array_equal(pixels(tmp_path / "all.png"), pixels(tmp_path / "none.png"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompts": ["one", " \n"]}, "prompt 2: is empty; say what to draw"),
        ({"prompts": []}, "no prompt; say what to draw"),
        ({"out": "out.JPG"}, r"--out .*out\.JPG: pictures are written as \.png"),
        ({"out": "folder.png"}, r"--out .*folder\.png: is a folder; name a file"),
        ({"out": "file.txt/out.png"}, r"--out .*file\.txt/out\.png: cannot be written, .*file\.txt is a file"),
        ({"out": "file.txt"}, r"--out .*file\.txt: cannot be written, .*file\.txt is a file"),
        ({"sampler": {"steps": 1}}, "--steps 1: at least 2 are needed"),
        ({"sampler": {"method": "ddim"}}, "--sampler ddim: not known; give one of heun, dpmpp_2m, euler"),
        ({"model": "elsewhere"}, r"elsewhere/model_index\.json: no trained model here; `make demo` or `snakemake --cores all"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_loaded(tmp_path, change, told):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file.txt").write_text("mine")
    given = {"prompts": ["one"], "out": "x.png", "model": "model", **OPTIONS, **change}
    prompts, out, model = given.pop("prompts"), tmp_path / given.pop("out"), tmp_path / given.pop("model")
    with pytest.raises(UserError, match=told):
        run(prompts, out, model, **given)
    assert (tmp_path / "file.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red circle, top-left!", "00003-a-red-circle-top-left.png"),
        ("../../etc/passwd", "00003-etc-passwd.png"),
        ("دائرة 🙂", "00003-دائرة.png"),
        ("🙂🙂", "00003.png"),
        ("word " * 40, "00003-word-word-word-word-word-word-word-word-word-wor.png"),
    ],
)
def test_file_names_are_safe(prompt, name):
    assert file_name(Drawing(3, prompt)) == name


def test_a_file_name_fits_every_disk():
    assert len(file_name(Drawing(3, "円" * 500)).encode()) <= 255


def test_a_grid_that_is_not_full_ends_in_white():
    whole = np.asarray(grid([Image.new("RGB", (4, 4), "red")] * 3, columns=2))
    assert whole.shape == (10, 10, 3)
    assert (whole[6:, 6:] == 255).all() and (whole[6:, :4] == (255, 0, 0)).all()


@pytest.mark.parametrize("drop", [True, False])
def test_padding_is_dropped_where_training_dropped_it(model, drop):
    file = model / "transformer/config.json"
    _change(file, architecture={**json.loads(file.read_text())["architecture"], "drop_text_padding": drop})
    text, lengths = Artist.load(model, None, torch.device("cpu")).text_encoder.encode(["one", "a b"])
    assert lengths.tolist() == [5, 4]
    assert all((row[length:] == 0).all() == drop and (row[:length] != 0).all() for row, length in zip(text, lengths, strict=True))
