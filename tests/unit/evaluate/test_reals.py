import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.artifacts import CAPTIONS, read_sidecar, write_sidecar
from pipeline.caption.captions import run as write_captions
from pipeline.config.sources import CocoSource
from pipeline.config.steps import CaptionSlice, CollectSlice, Settings
from pipeline.embedded.scenes import write_coco
from pipeline.errors import UserError
from pipeline.frozen.pixels import square
from pipeline.reals import captions_sha256, ids_sha256, order_sha256, read_reals, with_captions
from pipeline.sources import collect


def test_images_come_in_the_order_of_their_ids_over_all_shards(shards):
    reals = read_reals(*shards)
    assert [real.id for real in reals] == [str(i) for i in range(1, 13)]
    assert reals[3].caption is None and reals[0].caption.startswith(("a", "A", "the", "there", "on"))
    assert {len(real.attributes["objects"]) for real in reals} == {1, 2}


def test_numbers_in_keys_count_as_numbers(tmp_path, write_shard):
    image = _png((8, 8))
    pair = lists(*write_shard(tmp_path, "00000", [(key, image, "a", None) for key in ("b10", "a", "b9", "b", "10", "9")]))
    assert [real.key for real in read_reals(*pair)] == ["9", "10", "a", "b", "b9", "b10"]


def test_an_image_is_read_from_its_place_in_the_tar_and_cropped_as_for_training(tmp_path, write_shard):
    images = [_png((60, 40), seed) for seed in range(3)]
    pair = lists(*write_shard(tmp_path, "00000", [(str(i), image, "a", None) for i, image in enumerate(images)]))
    for real, image in zip(read_reals(*pair), images, strict=True):
        expected = np.asarray(square(Image.open(io.BytesIO(image)), 16))
        assert np.array_equal(real.pixels(16), expected)


def test_of_several_captions_the_first_counts(tmp_path, write_shard):
    images, captions = write_shard(tmp_path, "00000", [(str(i), _png((8, 8)), "first", None) for i in range(3)])
    table = read_sidecar(captions, "captions").file("captions")
    rows = [{"key": str(i), "caption": text} for i in range(3) for text in ("first", "second", None)[: 3 - i]]
    pq.write_table(pa.Table.from_pylist(rows, CAPTIONS), table)
    write_sidecar(captions, "captions", {"captions": (table, len(rows))}, {})
    assert [(real.key, real.caption) for real in read_reals([images], [captions])] == [(str(i), "first") for i in range(3)]


def test_grey_images_have_three_channels(tmp_path, write_shard):
    pair = lists(*write_shard(tmp_path, "00000", [("1", _png((20, 20), mode="L"), "a", None)]))
    assert read_reals(*pair)[0].pixels(10).shape == (10, 10, 3)


def test_the_first_captions_are_evaluated_and_images_without_one_are_passed_over(shards):
    reals = read_reals(*shards)
    assert [real.id for real in with_captions(reals, 5)] == ["1", "2", "3", "5", "6"]
    assert len(with_captions(reals, None)) == 11


def test_too_few_captions_name_the_key_and_the_counts(shards):
    with pytest.raises(UserError, match=r"evaluation.images: 12, but only 11 of the 12 images"):
        with_captions(read_reals(*shards), 12)
    with pytest.raises(UserError, match=r"evaluation.images: all, but only 3 .* give at least 4"):
        with_captions(read_reals(*shards)[:3], None)


def test_the_hash_of_the_ids_is_that_of_the_ids_one_a_line(shards):
    chosen = with_captions(read_reals(*shards), 4)
    assert ids_sha256(chosen) == hashlib.sha256(b"1\n2\n3\n5").hexdigest()


def test_the_hashes_do_not_depend_on_how_the_set_is_split_into_shards(shards):
    turned = read_reals(*(paths[::-1] for paths in shards))
    assert captions_sha256(turned) == captions_sha256(read_reals(*shards))
    assert captions_sha256(turned[1:]) != captions_sha256(turned)


def test_a_list_of_ids_gives_the_order_and_the_first_of_it(tmp_path):
    """Collected as COCO's, in two shards; which images they are has the same hash in any order."""
    write_coco(tmp_path, 0, 6, 0)
    listed = [5, 2, 6, 1, 4]
    (tmp_path / "ids.txt").write_text("".join(f"{number:012d}\n" for number in listed))
    keys = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "captions.json"), "min_side": 32, "shards": 2}
    source = CocoSource(kind="coco", role="evaluation", ids=str(tmp_path / "ids.txt"), **keys)
    images, captions = ([tmp_path / kind / f"{shard:05d}.json" for shard in (0, 1)] for kind in ("data", "captions"))
    for shard in (0, 1):
        collect.run(CollectSlice(name="coco", source=source), Settings(), shard, None, tmp_path / "fetched", images[shard])
        write_captions(CaptionSlice(mode="keep"), Settings(), images[shard], tmp_path / "work", captions[shard])
    reals = read_reals(images, captions)
    assert [int(real.id) for real in reals] == listed and read_reals(images[::-1], captions[::-1]) == reals
    assert [int(real.id) for real in with_captions(reals, 4)] == listed[:4]
    assert ids_sha256(reals) == hashlib.sha256(b"1\n2\n4\n5\n6").hexdigest() != order_sha256(reals)


def test_captions_of_another_shard_are_refused(shards):
    images, captions = shards
    with pytest.raises(UserError, match="its keys are not those of"):
        read_reals(images, captions[::-1])
    with pytest.raises(UserError, match="2 sidecars of images, 1 of captions"):
        read_reals(images, captions[:1])


def test_a_sidecar_of_another_kind_is_refused(shards, tmp_path):
    other = tmp_path / "x.json"
    write_sidecar(other, "latents", {}, {})
    with pytest.raises(UserError, match="not a sidecar of kind 'images'"):
        read_reals([other, other], shards[1])


def lists(*paths):
    return [[path] for path in paths]


def _png(size, seed=0, mode="RGB"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, format="png")
    return buffer.getvalue()
