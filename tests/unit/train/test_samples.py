import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config.steps import EncodeSlice, Settings
from pipeline.dataset import ArrowShard, Manifest
from pipeline.diffusion import EDM
from pipeline.encode.shards import Target
from pipeline.encode.text import write_text
from pipeline.engine.objective import Objective
from pipeline.model import MicroDiT, MicroDiTConfig
from pipeline.train.data import Samples
from pipeline.train.learner import recipe_of
from pipeline.train.network import architecture
from pipeline.train.samples import SampleGrid, grid_image
from tests.training import ends
from tests.unit.frozen.small_models import save_clip

CPU = torch.device("cpu")
TOKENS, WIDTH = 12, 16
PROMPTS = ["red", "a blue circle", "", "ab"]


def test_grid_places_images_row_by_row():
    images = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 3, 2, 5)
    pixels = np.asarray(grid_image(images))
    assert pixels.shape == (4, 20, 3)
    assert [pixels[0, 5 * column, 0] for column in range(4)] == [0, 51, 102, 153]
    assert [pixels[2, 5 * column, 0] for column in range(4)] == [204, 255, 255, 255]  # the last two places stay white


def test_few_images_make_one_short_row():
    assert grid_image(torch.zeros(2, 3, 4, 4)).size == (8, 4)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(save_clip(tmp_path_factory.mktemp("clip") / "clip"))


def random_network(config):
    """One that draws something, and something else for every text."""
    made, generator = MicroDiT(config, seed=5), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


@pytest.fixture
def grid_of(slice_of, manifest, vae, clip):
    """`grid_of(batch, prompts, text_padding)`: a grid and a network of the same shape."""

    def make(batch=8, prompts=(), padding="attend"):
        slice_ = slice_of(slice_={"vae": str(vae), "text_encoder": clip})
        text_shape = [TOKENS, WIDTH] if prompts else manifest.value["text_shape"]
        told = Manifest(manifest.path, {**manifest.value, "text_shape": text_shape, "text_padding": padding})
        objective = Objective(EDM(sigma_data=0.7), architecture(slice_, told), recipe_of(slice_))
        settings = Settings(runtime={"sample_batch": batch, "sample_prompts": list(prompts)})
        samples = Samples(manifest, slice_.stage, slice_.seed, slice_.name)
        return SampleGrid(slice_, settings, samples, objective, CPU), random_network(objective.config)

    return make


def drawn(grid, model, file):
    grid.draw(model, file)
    return np.asarray(Image.open(file)).astype(int)


def test_a_grid_depends_on_the_weights_alone(grid_of, tmp_path):
    grid, model = grid_of()
    pixels = drawn(grid, model, tmp_path / "one.png")
    assert pixels.shape == (16, 32, 3) and pixels.std() > 1
    torch.rand(3)  # the global generator is not asked
    assert np.array_equal(drawn(grid, model, tmp_path / "again.png"), pixels)
    in_parts, same = grid_of(batch=3)
    assert abs(drawn(in_parts, same, tmp_path / "parts.png") - pixels).max() <= 1  # sums of another order round differently
    with torch.no_grad():
        model.final_layer.linear.weight.mul_(2)
    assert not np.array_equal(drawn(grid, model, tmp_path / "other.png"), pixels)


def test_what_is_drawn_stays_and_the_network_goes_on_training(grid_of, tmp_path):
    grid, model = grid_of()
    model.train()
    before = drawn(grid, model, tmp_path / "one.png")
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    other = random_network(model.config)
    other.final_layer.linear.weight.data.mul_(3)
    assert np.array_equal(drawn(grid, other, tmp_path / "one.png"), before)


def test_prompts_of_ones_own_stand_row_by_row(grid_of, tmp_path):
    grid, model = grid_of(prompts=PROMPTS)
    pixels = drawn(grid, model, tmp_path / "one.png")
    assert pixels.shape == (8, 32, 3)
    fewer, same = grid_of(prompts=PROMPTS[:2])
    assert abs(drawn(fewer, same, tmp_path / "two.png") - pixels[:, :16]).max() <= 1  # each has noise of its own


def test_stages_of_one_resolution_start_from_the_same_noise(grid_of, tmp_path):
    grid, model = grid_of()
    pixels = drawn(grid, model, tmp_path / "one.png")
    grid._slice = grid._slice.model_copy(update={"name": "another_stage"})
    assert np.array_equal(drawn(grid, model, tmp_path / "two.png"), pixels)


def test_the_picture_says_what_it_shows(grid_of, tmp_path):
    for name, prompts, told in (("own", PROMPTS, PROMPTS), ("data", (), None)):
        grid, model = grid_of(prompts=prompts)
        grid.draw(model, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert json.loads(image.text["grid"]) == {"images": len(grid._asked[1]), "columns": 4, "prompts": told}


def stored_text(folder, clip, padding):
    """What training reads of the prompts: encoded, written and read back."""
    slice_ = EncodeSlice(vae="embedded:vae", text_encoder=clip, text_padding=padding, resolutions=[8], seed=0)
    target = Target(folder / f"{padding}.arrow", "text", "0")
    write_text(target, {}, slice_, Settings(runtime={"device": "cpu"}), [str(i) for i in range(len(PROMPTS))], PROMPTS)
    shard = ArrowShard(target.path, "tokens")
    return torch.from_numpy(np.stack([shard.row(i) for i in range(len(PROMPTS))])).float()


@torch.no_grad()
@pytest.mark.parametrize("padding", ["attend", "drop"])
def test_prompts_are_to_the_network_what_captions_on_disk_are(grid_of, clip, tmp_path, padding):
    grid, model = grid_of(prompts=PROMPTS, padding=padding)
    disk = stored_text(tmp_path, clip, padding)
    assert model.config.drop_text_padding == (padding == "drop")
    torch.testing.assert_close(grid._asked[1], disk, rtol=1e-3, atol=1e-3)  # float16 on disk
    assert torch.equal(grid._asked[1] == 0, disk == 0)
    assert (grid._asked[1][0, 5:] == 0).all() == (padding == "drop")  # begin, r, e, d, end
    drop, x, level = model.config.drop_text_padding, torch.randn(4, 4, 4, 4), torch.zeros(4)
    masks = [model.encode_text(text).mask for text in (grid._asked[1], disk)]
    assert torch.equal(*masks) if drop else masks == [None, None]
    torch.testing.assert_close(model(x, level, grid._asked[1]), model(x, level, disk), rtol=0.01, atol=0.01)


@torch.no_grad()
def test_a_network_that_drops_padding_sees_none_of_it(clip, tmp_path):
    """So that the test above can fail: with padding left in, the same network draws something else."""
    sizes = dict(dim=32, depth=2, head_dim=16, multiple_of=16, mixer_depth=1, mixer_dim=16, num_experts=2)
    text = dict(caption_channels=WIDTH, caption_length=TOKENS, drop_text_padding=True)
    config = MicroDiTConfig(input_size=4, patch_size=1, **sizes, **text)
    model, x, level = random_network(config), torch.randn(4, 4, 4, 4), torch.zeros(4)
    whole, dropped = (model(x, level, stored_text(tmp_path, clip, padding)) for padding in ("attend", "drop"))
    assert (whole - dropped).abs().max() > 0.1


def test_grids_do_not_depend_on_the_number_of_processes(trainer, slice_of, toy):
    short = slice_of(images=48)
    trainer.run(short, toy, name="one")
    assert ends(trainer.start_two(short, toy, name="two")) == [0, 0], trainer.log("two").read_text()
    first, last = (
        [np.asarray(Image.open(trainer.work(name) / f"samples/{images:012d}.png")).astype(int) for name in ("one", "two")]
        for images in (0, 48)
    )
    assert np.array_equal(*first)
    assert abs(last[0] - last[1]).max() <= 2 and last[0].std() > 1  # gradients were summed in another order
