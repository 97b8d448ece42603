"""Manifests over latents in the shapes of buckets, from photos by the real encode."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.artifacts import BUCKETED_INDEX, INDEX, read_json, read_sidecar, write_json
from pipeline.config.schema import Stage
from pipeline.config.steps import EncodeSlice, ManifestSlice, Settings
from pipeline.dataset import Manifest
from pipeline.encode.buckets import Buckets
from pipeline.encode.encode import run as encode
from pipeline.errors import UserError
from pipeline.manifest.build import run
from pipeline.train.data import Samples
from tests.unit.encode.small_shards import picture, write_captions, write_shard
from tests.unit.frozen.small_models import save_clip, save_vae

# Width and height; the buckets of 16 px are 12x20, 16x16 and 20x12.
SHAPES = [(48, 40), (32, 32), (90, 33), (41, 70), (20, 12), (12, 20), (19, 12), (12, 19), (16, 15), (200, 15), (16, 16)]
SMALL = {(19, 12), (12, 19), (16, 15)}  # a side is below that of their bucket


class Made:
    """Sources of photos, encoded at 16 px."""

    def __init__(self, root: Path, models: dict[str, str]) -> None:
        self.root, self.models, self.encoded = root, models, []

    def add(self, source: str, shapes: list[tuple[int, int]], **keys: object) -> None:
        paths = [self.root / part / source / "00000.json" for part in ("data", "captions", "encoded")]
        pictures = {f"{source}{n}": picture(n + 100 * len(self.encoded), shape) for n, shape in enumerate(shapes)}
        write_shard(paths[0], pictures)
        write_captions(paths[1], dict.fromkeys(pictures, "a caption"))
        slice_ = EncodeSlice(**self.models, resolutions=[16], seed=1, **({"crop": "buckets"} | keys))
        settings = Settings(runtime={"encode_batch": 4, "device": "cpu", "decode_workers": 0})
        folders = [self.root / part / source for part in ("latents", "text")]
        encode(slice_, settings, paths[0], paths[1], *folders, paths[2])
        self.encoded.append(paths[2])

    def build(self, upscale: bool = False, **keys: object) -> Manifest:
        uses = {path.parent.name: {"role": "real", "upscale": upscale} for path in self.encoded}
        filters = {"take_down": str(self.root / "none.txt"), "near_duplicates": None, **keys.pop("filters", {})}
        slice_ = ManifestSlice(stage="low", px=16, sources=uses, filters=filters, **keys)
        out = self.root / "manifests/low.json"
        run(slice_, self.encoded, [], [], out)
        return Manifest.read(out)

    def left_out(self) -> dict[str, str]:
        table = pd.read_parquet(self.root / "manifests/low.left_out.parquet")
        return dict(zip(table["key"], table["reason"], strict=True))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {"vae": str(save_vae(folder / "vae")), "text_encoder": str(save_clip(folder / "clip"))}


@pytest.fixture
def made(tmp_path: Path, models: dict[str, str]) -> Made:
    return Made(tmp_path, models)


def test_the_index_says_the_bucket_of_every_sample_and_the_counts_add_up(made: Made) -> None:
    made.add("a", SHAPES)
    made.add("b", SHAPES[:5])
    manifest, buckets = made.build(upscale=True), Buckets.of(16, 4, 2.0)
    expected = [buckets.number(*shape) for shape in (*SHAPES, *SHAPES[:5])]
    assert manifest.index.bucket.tolist() == expected and manifest.index.bucket.dtype == np.int16
    assert [tuple(bucket) for bucket in manifest.buckets] == [
        (height // 4, width // 4, expected.count(n)) for n, (height, width) in enumerate(buckets.sizes)
    ]
    assert sum(bucket.samples for bucket in manifest.buckets) == manifest.samples == 16
    assert manifest.latent_shape == (4, 4, 4) and manifest.value["latent_shape"] == [4, 4, 4]
    for shard, row, bucket in zip(*(manifest.index[place].tolist() for place in (0, 1)), expected, strict=True):
        assert manifest.latents(shard).row(row).shape[1:] == manifest.buckets[bucket][:2]


def test_images_that_would_be_enlarged_are_left_out_by_their_own_bucket(made: Made) -> None:
    """20x12 is exactly its bucket's size, though its shorter side is below 16; 16x15 is below the square's."""
    made.add("a", SHAPES)
    manifest = made.build()
    assert made.left_out() == {f"a{n}": "below_px" for n, shape in enumerate(SHAPES) if shape in SMALL}
    assert manifest.samples == len(SHAPES) - len(SMALL)
    assert sum(bucket.samples for bucket in manifest.buckets) == manifest.samples
    assert manifest.counts["a"]["left_out"] == {"below_px": len(SMALL)}


def test_held_out_samples_have_their_buckets_too(made: Made) -> None:
    made.add("a", SHAPES * 6)
    manifest, buckets = made.build(upscale=True, held_out=0.4, seed=3), Buckets.of(16, 4, 2.0)
    held_out = manifest.validation
    assert 0 < len(held_out.row) < 66 and len(held_out.row) + manifest.samples == 66
    assert held_out.bucket.tolist() == [buckets.number(*SHAPES[row % len(SHAPES)]) for row in held_out.row]


def test_training_reads_it(made: Made) -> None:
    made.add("a", SHAPES * 4)
    manifest = made.build(upscale=True)
    samples = Samples(manifest, Stage(px=16, mask_ratio=0, images=8, batch_images=8), 0, "low")
    shapes = {samples.batch(start, 8).latents.shape for start in range(0, samples.epoch_images, 8)}
    assert shapes == {(8, 4, 5, 3), (8, 4, 4, 4), (8, 4, 3, 5)}


def test_squares_have_an_index_as_ever(made: Made) -> None:
    made.add("a", SHAPES, crop="centre")
    manifest = made.build()
    assert manifest.buckets == [] and manifest.index.bucket is None and "buckets" not in manifest.value
    assert set(made.left_out()) == {f"a{n}" for n, shape in enumerate(SHAPES) if min(shape) < 16}
    assert INDEX.names == BUCKETED_INDEX.names[:-1]


@pytest.mark.parametrize("other", [{"crop": "centre"}, {"max_aspect": 1.0}])
def test_shards_of_other_buckets_do_not_belong_together(made: Made, other: dict[str, object]) -> None:
    made.add("a", SHAPES)
    made.add("b", SHAPES, **other)
    with pytest.raises(UserError, match=r"b/00000\.json: buckets .* differs from .* of .*a/00000\.json; run encode again"):
        made.build()


def test_latents_of_other_rows_are_noticed(made: Made) -> None:
    made.add("a", SHAPES)
    made.add("b", SHAPES[:4])
    one, other = (read_sidecar(path, "encoded") for path in made.encoded)
    value = read_json(one.path)
    value["files"]["latents-16"] = {**other.files["latents-16"], "path": f"../b/{other.files['latents-16']['path']}"}
    write_json(one.path, value)
    with pytest.raises(AssertionError, match="its latents are not those of its images"):
        made.build()
