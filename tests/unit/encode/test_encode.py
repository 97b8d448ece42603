import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.artifacts import BLOCK_ROWS, read_json, read_sidecar, verify
from pipeline.config.steps import EncodeSlice, Settings
from pipeline.dataset import ArrowShard
from pipeline.encode.encode import run
from pipeline.encode.latents import key_position, posterior_noise
from pipeline.errors import UserError
from pipeline.frozen.pixels import square, unit_tensor
from pipeline.frozen.text import load_text_encoder
from pipeline.frozen.vae import load_vae
from tests.unit.encode.small_shards import picture, write_captions, write_shard
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
        self, *resolutions: int, batch: int = 3, seed: int = 0, tokens: int | None = None, padding: str = "attend", **models: str
    ) -> None:
        text = {"text_tokens": tokens, "text_padding": padding}
        slice_ = EncodeSlice(**{**self.models, **models}, resolutions=list(resolutions), seed=seed, **text)
        settings = Settings.model_validate({"runtime": {"encode_batch": batch, "device": "cpu"}})
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
    assert stored < len(captions) * 12 and list(verify(shard.root)) == []


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
    assert list(verify(shard.root)) == []


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
    with pytest.raises(UserError, match=r"00000\.tar: image 'k0' does not decode"):
        shard.encode(16)
    tar.write_bytes(bytes(len(content) - 512) + b"x" * 512)
    with pytest.raises(UserError, match=r"00000\.tar: "):
        shard.encode(16)
    assert not [file for file in shard.root.rglob("*") if "latents" in file.parts and file.is_file()]


def test_a_px_that_the_vae_does_not_divide_is_named(shard: Run) -> None:
    with pytest.raises(UserError, match="px 18 is no multiple of 4"):
        shard.encode(16, 18)
