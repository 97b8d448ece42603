"""The model folder in plain diffusers: in a process that sees no package but torch, diffusers and transformers."""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.export import save_model_folder
from pipeline.export.drawing import draw_latents, noise_of
from pipeline.export.generate import Artist, Drawing

ALLOWED = ("torch", "diffusers", "transformers")
SAMPLER = {"steps": 4, "guidance": 2.0, "method": "heun", "interval": None}
PROMPTS = ["a red circle", "two blue squares"]

# Does not see the packages named in its first argument, nor the folder it is started from.
PROGRAM = """
import sys
from importlib.machinery import PathFinder

hidden, folder, out = set(sys.argv[1].split(",")), sys.argv[2], sys.argv[3]


class Fewer(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)


sys.meta_path[:] = [Fewer if finder is PathFinder else finder for finder in sys.meta_path]

import json
import numpy as np
import torch
from diffusers import DiffusionPipeline, EDMDPMSolverMultistepScheduler

PROMPTS = json.loads(sys.argv[4])
found = {}
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
found["seed"] = np.stack([np.asarray(picture) for picture in pipe(PROMPTS, seed=5).images])
found["latents"] = pipe(PROMPTS, seed=5, output_type="latent").images.numpy()
noise = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
given = {"num_images_per_prompt": 2, "num_inference_steps": 3, "guidance_scale": 1.0}
found["generator"] = pipe(PROMPTS, generator=torch.Generator().manual_seed(1), **given, output_type="pt").images.numpy()
found["noise"] = pipe(PROMPTS, latents=noise, **given, output_type="pt").images.numpy()
found["large"] = np.asarray(pipe("one", seed=5, height=32).images[0])
found["wide"] = np.asarray(pipe("one", seed=5, height=16, width=24).images[0])
pipe.scheduler = EDMDPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
found["dpmpp_2m"] = np.asarray(pipe("one", seed=5).images[0])
told = []
for call in ({"height": 30}, {"latents": noise}, {"output_type": "jpeg"}):
    try:
        pipe("one", **call)
    except ValueError as error:
        told.append(str(error))
low = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
found["bfloat16"] = low(PROMPTS, seed=5, output_type="np").images
dtypes = {name: str(part.dtype) for name, part in low.components.items() if hasattr(part, "dtype")}
np.savez(out, **found)
ours = sorted(name for name in sys.modules if name.partition(".")[0] in ("pipeline", "pyarrow", "accelerate", "open_clip"))
print(json.dumps({"told": told, "dtypes": dtypes, "ours": ours}))
"""


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(packages):
    """Distributions that these need, without extras."""
    found, queue = set(), list(packages)
    while queue:
        name = plain(queue.pop())
        if name in found:
            continue
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # of another platform
            continue
        found.add(name)
        queue += [re.match(r"[\w.-]+", line)[0] for line in lines if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_config, random_state, frozen_models):
    vae, text_encoder = frozen_models
    folder = tmp_path_factory.mktemp("shipped") / "model"
    info = {"px": 16, "frozen": {"vae": vae, "text_encoder": text_encoder}, "sampler": SAMPLER, "trained": {}}
    save_model_folder(folder, small_config, random_state, info)
    return folder


@pytest.fixture(scope="module")
def drawn(folder, tmp_path_factory):
    """What the process drew, and what it said."""
    place = tmp_path_factory.mktemp("elsewhere")
    (place / "draw.py").write_text(PROGRAM)
    needs = needed(ALLOWED)
    hidden = {top for top, names in packages_distributions().items() if not needs & set(map(plain, names))}
    assert {"accelerate", "pyarrow", "open_clip", "snakemake"} <= hidden and not {"torch", "numpy", "PIL"} & hidden
    done = subprocess.run(
        [sys.executable, "-I", "draw.py", ",".join(hidden), str(folder), "found.npz", json.dumps(PROMPTS)],
        cwd=place, capture_output=True, text=True, env={"HF_HOME": str(place), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(place / "found.npz"), json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def artist(folder):
    return Artist.load(folder, None, torch.device("cpu"))


def pictures(artist, prompts, **sampler):
    settings = {**artist.sampler, **sampler}
    drawings = [Drawing(number, prompt) for number, prompt in enumerate(prompts)]
    drawn = artist.draw(drawings, 16, 5, settings["steps"], settings["guidance"])
    return np.stack([np.asarray(picture) for _, picture in drawn])


def test_pictures_are_those_of_generate(drawn, artist):
    found, _, _ = drawn
    assert np.array_equal(found["seed"], pictures(artist, PROMPTS))
    assert found["seed"].std() > 0 and not np.array_equal(*found["seed"])


def test_latents_are_those_of_generate(drawn, artist):
    noise = noise_of((4, 4, 4), 5, [0, 1])
    text, _ = artist.text_encoder.encode(PROMPTS)
    expected = draw_latents(artist.network, artist.edm, noise, text, SAMPLER).numpy()
    assert np.abs(drawn[0]["latents"] - expected).max() < 1e-5


def test_noise_from_a_generator_is_that_given(drawn):
    found, _, _ = drawn
    assert found["generator"].shape == (4, 3, 16, 16) and np.array_equal(found["generator"], found["noise"])
    assert len({picture.tobytes() for picture in found["noise"]}) == 4


def test_other_sizes_and_another_scheduler(drawn, folder, artist):
    found, _, _ = drawn
    larger = Artist.load(folder, 32, torch.device("cpu"))
    assert np.array_equal(found["large"], pictures(larger, ["one"])[0])
    assert found["wide"].shape == (16, 24, 3)
    other = Artist(**{**vars(artist), "sampler": {**SAMPLER, "method": "dpmpp_2m"}})
    assert np.array_equal(found["dpmpp_2m"], pictures(other, ["one"])[0])
    assert not np.array_equal(found["dpmpp_2m"], pictures(artist, ["one"])[0])


def test_half_precision(drawn, artist):
    found, said, _ = drawn
    assert said["dtypes"] == {"transformer": "torch.bfloat16", "vae": "torch.float32", "text_encoder": "torch.bfloat16"}
    assert found["bfloat16"].shape == (2, 16, 16, 3) and found["bfloat16"].dtype == np.float32
    assert 0 < np.abs(found["bfloat16"] - pictures(artist, PROMPTS) / 255).mean() < 0.05


def test_mistakes_are_told_and_nothing_else_is_loaded(drawn):
    _, said, errors = drawn
    assert said["ours"] == []
    assert [told.partition(";")[0] for told in said["told"]] == [
        "height 30 and width 30: give multiples of 4",
        "latents are (4, 4, 4, 4)",
        "output_type 'jpeg': give pil, np, pt or latent",
    ]
    assert "unexpected" not in errors.lower() and "Traceback" not in errors


def test_without_trust_the_code_is_not_run(folder):
    from diffusers import DiffusionPipeline

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_frozen_model_that_is_nowhere_is_told(part):
    from pipeline.export.diffusers_pipeline import hub_autoencoder, hub_text_encoder

    load = hub_autoencoder if part == "vae" else hub_text_encoder
    for reference in (None, "embedded:vae"):
        with pytest.raises(ValueError, match=f"{part}: not in this folder and not named; pass {part}="):
            load(reference, torch.float32)


LAYOUTS = json.loads((Path(__file__).parents[2] / "data" / "official_layouts.json").read_text())


@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize(("preset", "official"), [("tiny2", "MicroDiT_Tiny_2"), ("xl2", "MicroDiT_XL_2")])
def test_the_class_has_the_official_tensors(preset, official, channels):
    from pipeline.export.diffusers_model import MicroDiTModel
    from pipeline.model import PRESETS

    config = {**PRESETS[preset].to_dict(), "in_channels": channels}
    with torch.device("meta"):
        found = {name: list(value.shape) for name, value in MicroDiTModel(architecture=config).state_dict().items()}
    expected = {name: list(shape) for name, shape in LAYOUTS[official].items()}
    patch = {
        "x_embedder.proj.weight": [expected["x_embedder.proj.bias"][0], channels, 2, 2],
        "mask_token": [1, 1, 4 * channels],
        "final_layer.linear.weight": [4 * channels, expected["x_embedder.proj.bias"][0]],
        "final_layer.linear.bias": [4 * channels],
    }
    assert found == {**expected, **patch} and (channels == 16 or found == expected)
