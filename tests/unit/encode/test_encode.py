import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.artifacts import BLOCK_ROWS, read_json, read_sidecar
from pipeline.config.steps import EncodeSlice, Settings
from pipeline.dataset import ArrowShard
from pipeline.encode.encode import run
from pipeline.encode.latents import key_position, posterior_noise
from pipeline.encode.samples import samples_of
from pipeline.errors import UserError
from pipeline.frozen.pixels import square, unit_tensor
from pipeline.frozen.text import load_text_encoder
from pipeline.frozen.vae import load_vae
from pipeline.verify.command import faults
from tests.unit.encode.small_shards import describe_again, picture, write_captions, write_shard
from tests.unit.frozen.small_models import save_clip, save_vae

SIZES = [(48, 40), (32, 32), (90, 33), (41, 70), (64, 64), (40, 48), (33, 33)]
PICTURES = {f"k{n}": picture(n, size) for n, size in enumerate(SIZES)}
CAPTIONS = {"k0": "red", "k1": None, "k2": "a b", "k3": "long enough to be cut", "k4": "red", "k5": "🙂", "k6": "x"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {"vae": str(save_vae(folder / "vae")), "text_encoder": str(save_clip(folder / "clip"))}


class Run:
    """One source with one shard, in the layout of results/."""

    def __init__(self, root: Path, models: dict[str, str]) -> None:
        self.root, self.models = root, models
        self.images = write_shard(root / "data/photos/00000.json", PICTURES, CAPTIONS)
        self.captions = write_captions(root / "captions/photos/00000.json", CAPTIONS)
        self.out = root / "encoded/photos/00000.json"

    def encode(
        self,
        *resolutions: int,
        batch: int = 3,
        workers: int | None = None,
        seed: int = 0,
        tokens: int | None = None,
        padding: str = "attend",
        **more: str,
    ) -> None:
        """`more`: references of models, and text_storage, posterior and dtype."""
        text = {"text_tokens": tokens, "text_padding": padding}
        slice_ = EncodeSlice(**{**self.models, **more}, resolutions=list(resolutions), seed=seed, **text)
        runtime = {"encode_batch": batch, "device": "cpu", "decode_workers": workers}
        settings = Settings.model_validate({"runtime": runtime})
        folders = self.root / "latents/photos", self.root / "text/photos"
        run(slice_, settings, self.images, self.captions, *folders, self.out)

    def latents(self, px: int) -> ArrowShard:
        return ArrowShard(read_sidecar(self.out, "encoded").file(f"latents-{px}"), "latent")

    def text(self) -> ArrowShard:
        return ArrowShard(read_sidecar(self.out, "encoded").file("text"), "tokens")

    def written(self) -> dict[str, int]:
        """Arrow files and when they were written."""
        return {str(f.relative_to(self.root)): f.stat().st_mtime_ns for f in self.root.rglob("*.arrow")}


@pytest.fixture
def shard(tmp_path: Path, models: dict[str, str]) -> Run:
    return Run(tmp_path, models)


def rows(shard: ArrowShard) -> np.ndarray:
    return np.stack([shard.row(n) for n in range(len(shard))])


def test_latents_are_the_vaes_of_the_cropped_image_with_the_keys_noise(shard: Run) -> None:
    shard.encode(16, 32, seed=5)
    vae = load_vae(shard.models["vae"], torch.device("cpu"))
    for px in (16, 32):
        found = shard.latents(px)
        assert found.shape == (4, px // 4, px // 4) and found.keys == list(PICTURES)
        for n, (key, image) in enumerate(PICTURES.items()):
            noise = posterior_noise(5, [key], found.shape, torch.device("cpu"))
            expected = vae.encode(unit_tensor([square(image, px)]) * 2 - 1, noise)[0]
            np.testing.assert_allclose(found.row(n).astype(np.float32), expected.numpy(), rtol=2e-3, atol=2e-3)


def test_text_is_aligned_and_a_missing_caption_is_the_empty_one(shard: Run) -> None:
    shard.encode(16)
    found, encoder = shard.text(), load_text_encoder(shard.models["text_encoder"], None, torch.device("cpu"))
    tokens, lengths = encoder.encode([caption or "" for caption in CAPTIONS.values()])
    assert found.keys == list(CAPTIONS) and found.shape == (12, 16)
    np.testing.assert_allclose(rows(found).astype(np.float32), tokens.numpy(), rtol=2e-3, atol=2e-3)
    assert text_table(shard)["length"].to_pylist() == lengths.tolist()
    assert np.array_equal(found.row(0), found.row(4)) and not np.array_equal(found.row(0), found.row(2))


def text_table(shard: Run) -> pa.Table:
    with pa.ipc.open_file(str(read_sidecar(shard.out, "encoded").file("text"))) as file:
        return file.read_all()


def test_every_caption_has_its_embedding_and_every_image_one_latent(shard: Run) -> None:
    texts = CAPTIONS | {"k2": ["a b", "red", "x"], "k6": ["x", None]}
    write_captions(shard.captions, texts)
    shard.encode(16)
    assert shard.latents(16).keys == list(PICTURES)
    found = shard.text()
    assert found.keys == ["k0", "k1", "k2", "k2", "k2", "k3", "k4", "k5", "k6", "k6"]
    assert np.array_equal(found.row(3), found.row(0)) and np.array_equal(found.row(4), found.row(8))
    assert read_sidecar(shard.out, "encoded").rows("text") == 10 and read_sidecar(shard.out, "encoded").rows("latents-16") == 7


@pytest.mark.parametrize("batch", [3, 300])
def test_dropped_padding_is_not_stored_and_nothing_else_is_lost(shard: Run, batch: int) -> None:
    captions = [*CAPTIONS.values()] + ["ab" * (n % 7) for n in range(BLOCK_ROWS)]
    write_captions(shard.captions, {"k0": captions[:1]} | {f"k{n}": [captions[n]] for n in range(1, 6)} | {"k6": captions[6:]})
    shard.encode(16, batch=batch)
    whole, before = text_table(shard), shard.written()
    shard.encode(16, batch=batch, padding="drop")
    after, short = shard.written(), text_table(shard)
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 1
    assert short.schema.field("tokens").type == pa.list_(pa.float16()) and short.schema.metadata[b"shape"] == b"[12, 16]"
    assert json.loads(short.schema.metadata[b"info"])["padding"] == "drop"
    assert "padding" not in json.loads(whole.schema.metadata[b"info"]) and whole.schema.field("tokens").type.list_size == 12 * 16
    assert short["key"].equals(whole["key"]) and short["length"].equals(whole["length"])
    for length, kept, full in zip(*(c.to_pylist() for c in (whole["length"], short["tokens"], whole["tokens"])), strict=True):
        assert kept == full[: length * 16]
    real = np.arange(12) < whole["length"].to_numpy()[:, None]
    padded = np.stack(whole["tokens"].to_pylist()).reshape(-1, 12, 16) * real[:, :, None]
    assert np.array_equal(rows(shard.text()), padded)
    stored = sum(whole["length"].to_pylist())
    info = read_sidecar(shard.out, "encoded").info["text"]
    assert (info["padding"], info["tokens_stored"], info["tokens_padded"]) == ("drop", stored, len(captions) * 12)
    assert stored < len(captions) * 12 and faults(shard.root) == []


def test_a_latent_depends_on_key_and_seed_and_not_on_its_batch(shard: Run, tmp_path: Path) -> None:
    shard.encode(16, batch=2)
    first = rows(shard.latents(16))
    other = Run(tmp_path / "other", shard.models)
    other.encode(16, batch=7)
    np.testing.assert_allclose(rows(other.latents(16)).astype(np.float32), first.astype(np.float32), atol=2e-3)
    other.encode(16, seed=1)
    assert np.abs(rows(other.latents(16)) - first).max() > 0.05
    one, two = (posterior_noise(0, keys, (4, 2, 2), torch.device("cpu")) for keys in (["a", "b"], ["b"]))
    assert torch.equal(one[1:], two) and not torch.equal(one[:1], two)
    assert 0 <= key_position("a") < 2**63


def test_sidecar_names_everything_the_manifest_needs(shard: Run) -> None:
    shard.encode(16, 32)
    sidecar = read_sidecar(shard.out, "encoded")
    info = sidecar.info
    assert set(sidecar.files) == {"text", "latents-16", "latents-32"} and sidecar.rows("text") == len(PICTURES)
    assert (info["source"], info["shard"]) == ("photos", "00000")
    assert info["latents"]["32"] == {"shape": [4, 8, 8], "scaling_factor": 0.18215, "bad_rows": {}}
    assert info["text"] == {"padding": "attend", "shape": [12, 16], "bad_rows": {}}
    assert (info["vae"]["ref"], info["text_encoder"]["class"]) == (shard.models["vae"], "CLIPModel")
    for kind in ("images", "captions"):
        named = read_sidecar(shard.out.parent / info[kind]["path"], kind)
        assert named.sha256(kind) == info[kind]["sha256"]
    assert faults(shard.root) == []


def test_nothing_is_made_twice_and_a_new_resolution_makes_only_itself(shard: Run) -> None:
    shard.encode(16)
    before, sidecar = shard.written(), shard.out.read_bytes()
    shard.encode(16, batch=1)
    assert shard.written() == before and shard.out.read_bytes() == sidecar
    shard.encode(16, 32)
    after = shard.written()
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 1
    shard.encode(32)
    assert shard.written() == after and set(read_sidecar(shard.out, "encoded").files) == {"text", "latents-32"}


def test_new_captions_make_only_text_and_new_images_only_latents(shard: Run) -> None:
    shard.encode(16)
    before = shard.written()
    latents, text = (next(name for name in before if name.startswith(kind)) for kind in ("latents", "text"))
    write_captions(shard.captions, CAPTIONS | {"k0": "green"})
    shard.encode(16)
    after = shard.written()
    assert after[latents] == before[latents] and after[text] > before[text]
    write_shard(shard.images, PICTURES | {"k0": picture(9)}, CAPTIONS)
    shard.encode(16)
    assert shard.written()[latents] > after[latents] and shard.written()[text] == after[text]


def test_another_model_or_length_lies_beside_the_old_one(shard: Run, tmp_path: Path) -> None:
    shard.encode(16)
    before = shard.written()
    shard.encode(16, vae=str(save_vae(tmp_path / "vae", scaling_factor=0.5)), tokens=6)
    after = shard.written()
    assert {name: after[name] for name in before} == before and len(after) == 4
    assert shard.text().shape == (6, 16)
    copied = str(shutil.copytree(shard.models["vae"], tmp_path / "copy"))
    shard.encode(16, vae=copied)
    assert shard.written() == after and read_json(shard.out)["info"]["vae"]["ref"] == copied


def test_a_damaged_file_is_made_again(shard: Run) -> None:
    shard.encode(16)
    file = read_sidecar(shard.out, "encoded").file("latents-16")
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    shard.encode(16)
    assert file.read_bytes() == whole


def test_latents_without_finite_half_floats_are_zeros_with_a_reason(shard: Run, tmp_path: Path) -> None:
    shard.encode(16, vae=str(save_vae(tmp_path / "large", scaling_factor=1e9)))
    bad = read_json(shard.out)["info"]["latents"]["16"]["bad_rows"]
    assert bad == {str(row): "fp16_overflow" for row in range(7)} and not rows(shard.latents(16)).any()
    shard.encode(16, vae=str(save_vae(tmp_path / "broken", scaling_factor=float("nan"))))
    assert set(read_json(shard.out)["info"]["latents"]["16"]["bad_rows"].values()) == {"not_finite"}


def test_an_empty_shard_is_encoded_to_no_rows(shard: Run) -> None:
    write_shard(shard.images, {})
    write_captions(shard.captions, {})
    for padding in ("attend", "drop"):
        shard.encode(16, padding=padding)
        assert len(shard.latents(16)) == len(text_table(shard)) == 0


def test_captions_of_other_images_are_refused(shard: Run) -> None:
    write_captions(shard.captions, {key: "x" for key in reversed(CAPTIONS)})
    with pytest.raises(UserError, match="row 0 is 'k0', but the captions are of other images"):
        shard.encode(16)
    write_captions(shard.captions, {"k0": "x"})
    with pytest.raises(UserError, match=r"captions of 1 images, but .*00000\.json has 7"):
        shard.encode(16)
    assert not shard.out.exists() and not [name for name in shard.written() if name.startswith("latents")]


def test_a_damaged_shard_is_named_and_leaves_nothing(shard: Run) -> None:
    tar = shard.images.with_suffix(".tar")
    content = bytearray(tar.read_bytes())
    start = content.index(b"IDAT")
    content[start : start + 200] = bytes(200)
    tar.write_bytes(content)
    with pytest.raises(UserError, match=r"00000\.tar: content differs from the sha256 in .*00000\.json"):
        shard.encode(16)
    describe_again(shard.images)
    with pytest.raises(UserError, match=r"00000\.tar: image 'k0' does not decode"):
        shard.encode(16)
    tar.write_bytes(bytes(len(content) - 512) + b"x" * 512)
    describe_again(shard.images)
    with pytest.raises(UserError, match=r"00000\.tar: "):
        shard.encode(16)
    assert not [file for file in shard.root.rglob("*") if "latents" in file.parts and file.is_file()]


@pytest.mark.parametrize("name", ["a b", "it's %20 ü", "{0..9}", "a;b#c?d", "pipe:ls"])
def test_a_shard_in_a_folder_of_any_name_is_read(tmp_path: Path, name: str) -> None:
    sidecar = write_shard(tmp_path / name / "00000.json", {"k0": picture(0), "k1": picture(1)})
    assert [key for key, _ in samples_of(sidecar.with_suffix(".tar"), ["k0", "k1"])] == ["k0", "k1"]


def test_a_px_that_the_vae_does_not_divide_is_named(shard: Run) -> None:
    with pytest.raises(UserError, match="px 18 is no multiple of 4"):
        shard.encode(16, 18)


def test_the_mean_of_the_posterior_has_no_seed_and_lies_beside_the_samples(shard: Run) -> None:
    shard.encode(16)
    sampled, before = rows(shard.latents(16)), shard.written()
    shard.encode(16, posterior="mean")
    after, vae = shard.written(), load_vae(shard.models["vae"], torch.device("cpu"))
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 1
    info = shard.latents(16).info
    assert info["posterior"] == "mean" and "seed" not in info and np.abs(rows(shard.latents(16)) - sampled).max() > 0.05
    expected = vae.encode(torch.cat([unit_tensor([square(image, 16)]) * 2 - 1 for image in PICTURES.values()]))
    np.testing.assert_allclose(rows(shard.latents(16)).astype(np.float32), expected.numpy(), rtol=2e-3, atol=2e-3)
    shard.encode(16, posterior="mean", seed=9)
    assert shard.written() == after and read_json(shard.out)["info"]["latents"]["16"]["posterior"] == "mean"


def test_another_precision_is_another_cache_where_the_model_takes_it(shard: Run, tmp_path: Path) -> None:
    shard.encode(16)
    before = shard.written()
    shard.encode(16, dtype="bfloat16")
    made = set(shard.written()) - set(before)
    assert len(made) == 1 and made.pop().startswith("text")  # the autoencoder asks for float32
    info = read_json(shard.out)["info"]
    assert info["latents"]["16"]["computed_in"] == "float32" and info["text"]["computed_in"] == "bfloat16"
    vae = str(save_vae(tmp_path / "vae", force_upcast=False))
    shard.encode(16, vae=vae)
    whole, before = rows(shard.latents(16)).astype(np.float32), shard.written()
    shard.encode(16, vae=vae, dtype="bfloat16")
    half = rows(shard.latents(16)).astype(np.float32)
    assert len(shard.written()) == len(before) + 1 and shard.latents(16).info["computed_in"] == "bfloat16"
    assert 0 < np.linalg.norm(half - whole) / np.linalg.norm(whole) < 0.05


@pytest.mark.parametrize("padding", ["attend", "drop"])
def test_int8_text_reads_as_its_float16_to_within_its_steps(shard: Run, padding: str) -> None:
    shard.encode(16, padding=padding)
    whole, before = rows(shard.text()).astype(np.float32), shard.written()
    lengths, size = text_table(shard)["length"], read_sidecar(shard.out, "encoded").file("text").stat().st_size
    shard.encode(16, padding=padding, text_storage="int8")
    after, table, small = shard.written(), text_table(shard), rows(shard.text())
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 1
    assert table.schema.names == ["key", "tokens", "length", "scales"] and table["length"].equals(lengths)
    assert table.schema.field("tokens").type.value_type == pa.int8() and shard.text().info["dtype"] == "int8"
    assert small.dtype == np.float16 and small.shape == whole.shape
    step = np.abs(whole).max(-1, keepdims=True) / 127
    assert (np.abs(small - whole) <= 0.6 * step + 1e-6).all() and not np.array_equal(small, whole)
    assert read_json(shard.out)["info"]["text"]["storage"] == "int8" and faults(shard.root) == []
    assert read_sidecar(shard.out, "encoded").file("text").stat().st_size < size


def test_bad_rows_of_int8_text_are_zeros(shard: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(shard.models["text_encoder"], tmp_path / "large"))
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.startswith("text_model") and name.endswith("final_layer_norm.weight"))
    weights[name] *= 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    shard.encode(16, text_encoder=str(folder), text_storage="int8")
    bad = read_json(shard.out)["info"]["text"]["bad_rows"]
    assert bad == {str(row): "fp16_overflow" for row in range(7)} and not rows(shard.text()).any()


def test_the_bytes_are_the_same_for_any_number_of_workers(shard: Run, tmp_path: Path) -> None:
    """More images than a piece of work holds, in batches that end in the middle of one."""
    pictures = {f"k{n}": picture(n, SIZES[n % len(SIZES)]) for n in range(50)}
    found = []
    for workers in (0, 1, 3):
        run_ = Run(tmp_path / str(workers), shard.models)
        write_shard(run_.images, pictures)
        write_captions(run_.captions, dict.fromkeys(pictures, "x"))
        run_.encode(16, 32, batch=20, workers=workers)
        found.append([read_sidecar(run_.out, "encoded").sha256(f"latents-{px}") for px in (16, 32)])
    assert found[0] == found[1] == found[2] and len(set(found[0])) == 2
