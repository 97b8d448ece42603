"""Buckets of aspect ratio: the list, the choice, and the latents of photos of many shapes."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.artifacts import BLOCK_ROWS, read_json, read_sidecar
from pipeline.config.steps import EncodeSlice, Settings
from pipeline.dataset import ArrowShard
from pipeline.encode.buckets import STEPS, Buckets, step_of
from pipeline.encode.encode import run
from pipeline.encode.latents import posterior_noise
from pipeline.errors import UserError
from pipeline.frozen.pixels import covering, square, unit_tensor
from pipeline.frozen.vae import load_vae
from pipeline.verify.command import faults
from tests.unit.encode.small_shards import picture, write_captions, write_shard
from tests.unit.frozen.small_models import save_clip, save_vae

STEP = st.sampled_from([1, 2, 4, 8, 16, 64])
ASPECT = st.floats(1, 8)
SIDE = st.integers(1, 9000)


def made(step: int, parts: int, max_aspect: float) -> tuple[int, Buckets]:
    return step * parts, Buckets.of(step * parts, step, max_aspect)


@settings(max_examples=150, deadline=None)
@given(STEP, st.integers(1, 24), ASPECT)
def test_the_list_is_all_sizes_that_are_as_large_as_may_be(step: int, parts: int, max_aspect: float) -> None:
    px, buckets = made(step, parts, max_aspect)
    lattice = list(product(range(step, px * parts + 1, step), repeat=2))
    fits = {(h, w) for h, w in lattice if h * w <= px * px}
    largest = {(h, w) for h, w in fits if not {(h + step, w), (h, w + step)} & fits}
    expected = {(h, w) for h, w in largest if max(h, w) <= max_aspect * min(h, w)}
    assert set(buckets.sizes) == expected and len(buckets.sizes) == len(expected)
    assert (px, px) in expected and expected == {(w, h) for h, w in expected}
    ratios = [size.width / size.height for size in buckets.sizes]
    assert ratios == sorted(ratios) and len(set(ratios)) == len(ratios)


@settings(max_examples=300, deadline=None)
@given(STEP, st.integers(1, 24), ASPECT, SIDE, SIDE)
def test_an_image_goes_to_the_nearest_log_aspect(step: int, parts: int, max_aspect: float, width: int, height: int) -> None:
    _, buckets = made(step, parts, max_aspect)
    distances = [abs(math.log(width / height) - math.log(size.width / size.height)) for size in buckets.sizes]
    chosen = buckets.number(width, height)
    assert distances[chosen] <= min(distances) + 1e-9
    assert buckets.number(3 * width, 3 * height) == chosen


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([256, 512]), st.integers(0, 700), st.integers(0, 3000), st.booleans())
def test_an_image_of_the_stages_side_is_never_enlarged(px: int, more: int, longer: int, turned: bool) -> None:
    sides = (px + more, px + more + longer)
    width, height = sides[::-1] if turned else sides
    buckets = Buckets.of(px, step_of(px, 8, None), 2.0)
    size = buckets.sizes[buckets.number(width, height)]
    assert size.width <= width and size.height <= height


def test_the_usual_lists() -> None:
    wide = [(256, 256), (240, 272), (224, 288), (208, 304), (192, 336)]
    assert Buckets.of(256, 16, 2.0).sizes == tuple([(w, h) for h, w in wide[:0:-1]] + wide)
    assert [tuple(4 * side for side in size) for size in Buckets.of(256, 16, 2.0).sizes] == [*Buckets.of(1024, 64, 2.0).sizes]
    assert Buckets.of(256, 16, 1.0).sizes == ((256, 256),)


@pytest.mark.parametrize(("px", "factor", "step"), [(256, 8, 16), (1024, 8, 64), (32, 8, 8), (256, 32, 32), (200, 8, 40)])
def test_the_step_divides_px_and_can_be_divided_by_the_autoencoder(px: int, factor: int, step: int) -> None:
    assert step_of(px, factor, None) == step and px % step == step % factor == 0 and px <= STEPS * step
    assert step_of(px, factor, px) == px


@pytest.mark.parametrize("wanted", [12, 48])
def test_a_step_that_does_not_fit_is_named(wanted: int) -> None:
    with pytest.raises(UserError, match=rf"models\.bucket_step: {wanted} must be a multiple of 8, .* divide the 256 px"):
        step_of(256, 8, wanted)


@settings(max_examples=60, deadline=None)
@given(*[st.integers(2, 120)] * 4)
def test_covering_cuts_no_more_than_one_side_of_the_middle(wide: int, high: int, height: int, width: int) -> None:
    """Of an image of its own coordinates: the corners that are left lie around the middle, and one side is whole."""
    y, x = np.mgrid[0:high, 0:wide]
    image = Image.fromarray(np.stack([255 * x / (wide - 1), 255 * y / (high - 1), 0 * x], -1).astype(np.uint8))
    found = np.asarray(covering(image, height, width), dtype=float)
    assert found.shape == (height, width, 3)
    if height == width:
        assert np.array_equal(found, np.asarray(square(image, width)))
    if min(height, width, wide, high) >= 16:
        spans = [found[:, -1, 0].mean() - found[:, 0, 0].mean(), found[-1, :, 1].mean() - found[0, :, 1].mean()]
        assert max(spans) > 225  # one of the two is not cut
        assert found[..., :2].mean(axis=(0, 1)) == pytest.approx([127.5, 127.5], abs=9)


# Shapes of photos, then extreme ones; 16 px squares and the buckets around them in steps of 4.
SHAPES = [(48, 40), (32, 32), (90, 33), (41, 70), (64, 64), (40, 48), (33, 33), (200, 20), (20, 200), (30, 16), (16, 30)]
PICTURES = {f"k{n}": picture(n, SHAPES[n % len(SHAPES)]) for n in range(50)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {"vae": str(save_vae(folder / "vae")), "text_encoder": str(save_clip(folder / "clip"))}


def encode(root: Path, models: dict[str, str], px: int = 16, batch: int = 3, workers: int = 0, **keys: object) -> Path:
    """Encode the pictures under `root`; returns the sidecar."""
    if not (root / "data").exists():
        write_shard(root / "data/photos/00000.json", PICTURES)
        write_captions(root / "captions/photos/00000.json", dict.fromkeys(PICTURES, "x"))
    slice_ = EncodeSlice(**models, resolutions=[px], seed=5, **keys)
    settings_ = Settings(runtime={"encode_batch": batch, "device": "cpu", "decode_workers": workers})
    inputs = [root / part / "photos/00000.json" for part in ("data", "captions")]
    out = root / "encoded/photos/00000.json"
    run(slice_, settings_, *inputs, root / "latents/photos", root / "text/photos", out)
    return out


def shard_of(out: Path, px: int = 16) -> ArrowShard:
    return ArrowShard(read_sidecar(out, "encoded").file(f"latents-{px}"), "latent")


def test_latents_are_those_of_the_image_fitted_to_its_bucket(models: dict[str, str], tmp_path: Path) -> None:
    shard, vae = shard_of(encode(tmp_path, models, crop="buckets")), load_vae(models["vae"], torch.device("cpu"))
    buckets = Buckets.of(16, 4, 2.0)
    assert shard.info["buckets"] == [[h // 4, w // 4] for h, w in buckets.sizes] == [[5, 3], [4, 4], [3, 5]]
    assert shard.shape == (4, 4, 4) and shard.keys == list(PICTURES) and shard.info["crop"] == "buckets"
    numbers = shard.row_buckets
    assert set(numbers) == {0, 1, 2} and numbers.dtype == np.int16
    for row, (key, image) in enumerate(PICTURES.items()):
        size = buckets.sizes[numbers[row]]
        assert size == buckets.sizes[buckets.number(*image.size)]
        latent = shard.row(row)
        assert latent.shape == (4, size.height // 4, size.width // 4)
        noise = posterior_noise(5, [key], latent.shape, torch.device("cpu"))
        expected = vae.encode(unit_tensor([covering(image, *size)]) * 2 - 1, noise)[0]
        np.testing.assert_allclose(latent.astype(np.float32), expected.numpy(), rtol=2e-3, atol=2e-3)


def test_the_bytes_are_the_same_for_any_number_of_workers_and_the_rows_for_any_batch(
    models: dict[str, str], tmp_path: Path
) -> None:
    outs = [encode(tmp_path / str(n), models, crop="buckets", batch=5, workers=n) for n in (0, 2)]
    assert len({read_sidecar(out, "encoded").sha256("latents-16") for out in outs}) == 1
    one, other = shard_of(outs[0]), shard_of(encode(tmp_path / "large", models, crop="buckets", batch=100))
    assert np.array_equal(one.row_buckets, other.row_buckets)
    for row in range(len(PICTURES)):
        np.testing.assert_allclose(one.row(row).astype(np.float32), other.row(row).astype(np.float32), atol=2e-3)


def test_the_file_says_what_it_is_and_lies_beside_that_of_squares(models: dict[str, str], tmp_path: Path) -> None:
    plain = encode(tmp_path, models)
    before, info = read_sidecar(plain, "encoded").file("latents-16"), read_json(plain)["info"]["latents"]["16"]
    bytes_before = before.read_bytes()
    assert "buckets" not in info and pa.ipc.open_file(str(before)).schema.names == ["key", "latent"]
    encode(tmp_path, models, crop="buckets")
    sidecar = read_sidecar(plain, "encoded")
    with pa.ipc.open_file(str(sidecar.file("latents-16"))) as file:
        table = file.read_all()
    assert table.schema.names == ["key", "latent", "bucket"] and table.schema.field("latent").type == pa.list_(pa.float16())
    shapes = sidecar.info["latents"]["16"]["buckets"]
    assert [len(row) for row in table["latent"].to_pylist()] == [4 * math.prod(shapes[n]) for n in table["bucket"].to_pylist()]
    assert json.loads(table.schema.metadata[b"info"])["max_aspect"] == 2.0
    assert before.read_bytes() == bytes_before and before != sidecar.file("latents-16") and faults(tmp_path) == []
    assert len(list((tmp_path / "text/photos").iterdir())) == 1  # embeddings know nothing of crops
    encode(tmp_path, models, crop="buckets", max_aspect=3.0)
    assert len(list((tmp_path / "latents/photos").iterdir())) == 3
    assert [3, 5] in shard_of(plain).info["buckets"] and [2, 8] not in shard_of(plain).info["buckets"]


def test_keys_of_buckets_do_not_touch_squares(models: dict[str, str], tmp_path: Path) -> None:
    first = read_sidecar(encode(tmp_path, models), "encoded").file("latents-16")
    again = read_sidecar(encode(tmp_path, models, max_aspect=3.0, bucket_step=8), "encoded").file("latents-16")
    assert first == again


def test_rows_without_finite_numbers_are_named_in_their_order(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some images, in batches of several buckets: row and reason, and zeros in the shape of the bucket."""
    from pipeline.frozen.vae import Vae

    whole, bright = Vae.encode, 0.35

    def poisoned(self: Vae, images: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        latents = whole(self, images, noise)
        latents[images.flatten(1).mean(1) > bright] = 1e6
        return latents

    monkeypatch.setattr(Vae, "encode", poisoned)
    monkeypatch.setattr("pipeline.encode.latents.GATHERED", 2)
    out = encode(tmp_path, models, crop="buckets", batch=4)
    buckets, shard = Buckets.of(16, 4, 2.0), shard_of(out)
    means = [float(np.asarray(buckets.fitted(image)).mean() / 127.5 - 1) for image in PICTURES.values()]
    expected = [row for row, mean in enumerate(means) if mean > bright]
    found = read_json(out)["info"]["latents"]["16"]["bad_rows"]
    assert 0 < len(expected) < 50 and found == {str(row): "fp16_overflow" for row in expected}
    assert list(found) == [str(row) for row in expected]
    for row in range(50):
        assert shard.row(row).any() == (row not in expected)


def test_blocks_are_of_as_many_rows_as_ever(models: dict[str, str], tmp_path: Path) -> None:
    many = {f"m{n}": picture(n, SHAPES[n % len(SHAPES)]).resize((20, 12) if n % 3 else (12, 20)) for n in range(BLOCK_ROWS + 9)}
    write_shard(tmp_path / "data/photos/00000.json", many)
    write_captions(tmp_path / "captions/photos/00000.json", dict.fromkeys(many, "x"))
    shard = shard_of(encode(tmp_path, models, crop="buckets", batch=64))
    blocks = [shard.block(n) for n in range(shard.blocks)]
    assert [len(block.starts) - 1 for block in blocks] == [BLOCK_ROWS, 9] and len(shard) == BLOCK_ROWS + 9
    row = shard.row(BLOCK_ROWS + 2)
    start, end = blocks[1].starts[2:4]
    assert np.array_equal(blocks[1].values[start:end].reshape(row.shape), row)


def test_a_step_that_does_not_fit_ends_in_one_line(models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"models\.bucket_step: 6 must be a multiple of 4"):
        encode(tmp_path, models, crop="buckets", bucket_step=6)
