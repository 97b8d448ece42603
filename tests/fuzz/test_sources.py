"""What others publish: annotations, tables, archives, pictures, lists of URLs."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.running import Downloads, Runtime
from pipeline.config.sources import KINDS
from pipeline.config.steps import CollectSlice, Settings, TableSlice
from pipeline.sources import table
from pipeline.sources.collect import run
from pipeline.sources.images import prepare
from tests.fuzz.conftest import damaged, spliced
from tests.pictures import encoded, jpeg, photo, tar_bytes, zip_bytes

NOWHERE = Settings(runtime=Runtime(downloads=Downloads(attempts=1, timeout_seconds=1)), yields={"mine": 0.0})
SMALL = {"width": 24, "height": 20}
ROWS = [
    {
        "url": f"http://169.254.0.1/{number}",
        "caption": f"a cat, {number} \u00fc",
        "id": str(number),
        "license": "CC0",
        "nsfw": 0.1 * number,
    }
    for number in range(4)
]
COLUMNS = {"id": "id", "url": "url", "captions": ["caption"], "license": "license", "scores": {"nsfw": "nsfw"}}


def collect(folder, kind, **keys):
    """One shard of a source; what it holds does not matter."""
    source = KINDS[kind](kind=kind, **({"min_side": 8, "min_yield": 0.0} | keys))
    run(CollectSlice(name="mine", source=source), NOWHERE, 0, None, folder / "downloads", folder / "out" / "0.json")


def as_table(kind):
    buffer, text = io.BytesIO(), io.StringIO()
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), buffer)
        return buffer.getvalue()
    if "json" in kind:
        text.write("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        rows = csv.DictWriter(text, ROWS[0], delimiter="\t" if kind == "tsv" else ",")
        rows.writeheader()
        rows.writerows(ROWS)
    plain = text.getvalue().encode()
    return gzip.compress(plain) if kind.endswith("gz") else plain


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl", "jsonl.gz"])
def test_a_list_of_urls(fuzz, kind):
    def check(data, folder):
        (folder / f"t.{kind}").write_bytes(data)
        source = KINDS["url_list"](kind="url_list", table=str(folder / f"t.{kind}"), columns=COLUMNS)
        table.run(TableSlice(name="mine", source=source), NOWHERE, folder / "downloads", folder / "out.json")

    fuzz([as_table(kind)], check, *([damaged, spliced] if kind == "jsonl" else [damaged]))


def test_annotations_of_coco(fuzz, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(jpeg(1, **SMALL))
    document = {
        "images": [{"id": 1, "file_name": "1.jpg", "license": 1, "width": 24, "height": 20, "coco_url": "http://x/1"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "one"}, {"id": 2, "image_id": 1, "caption": "two"}],
        "licenses": [{"id": 1, "name": "CC BY", "url": "http://x"}],
    }

    def check(data, folder):
        (folder / "captions.json").write_bytes(data)
        collect(folder, "coco", images=str(folder / "images"), annotations=str(folder / "captions.json"))

    fuzz([json.dumps(document).encode()], check, damaged, spliced)


def samples():
    fields = {"caption": "json", "url": "https://x.org/1", "license": "CC BY", "nsfw": 0.5}
    return [("a.jpg", jpeg(1, **SMALL)), ("a.json", json.dumps(fields).encode()), ("b.jpg", jpeg(2, **SMALL)), ("b.txt", b"two")]


@pytest.mark.parametrize("kind", ["w", "w:gz"])
def test_a_tar_of_samples(fuzz, kind):
    def check(data, folder):
        (folder / "a.tar").write_bytes(data)
        collect(folder, "webdataset", path=str(folder / "a.tar"))

    fuzz([tar_bytes(samples(), kind)], check)


def test_metadata_in_a_tar(fuzz):
    (_, picture), (_, fields), *_ = samples()

    def check(data, folder):
        (folder / "a.tar").write_bytes(tar_bytes([("a.jpg", picture), ("a.json", data)]))
        collect(folder, "webdataset", path=str(folder / "a.tar"))

    fuzz([fields], check, spliced)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_of_images(fuzz, kind):
    members = [("deep/a.jpg", jpeg(1, **SMALL)), ("b.png", encoded(photo(2, **SMALL), "PNG"))]

    def check(data, folder):
        (folder / f"a.{kind}").write_bytes(data)
        collect(folder, "archives", files=str(folder / f"a.{kind}"))

    fuzz([zip_bytes(members) if kind == "zip" else tar_bytes(members)], check)


def test_images_in_a_parquet_file(fuzz):
    rows = [{"image": {"bytes": jpeg(n, **SMALL), "path": f"{n}.jpg"}, "caption": "one"} for n in range(2)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)

    def check(data, folder):
        (folder / "a.parquet").write_bytes(data)
        collect(folder, "hf_parquet", files=str(folder / "a.parquet"), columns={"image": "image", "captions": ["caption"]})

    fuzz([buffer.getvalue()], check)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_an_image(fuzz, kind):
    def check(data, folder):
        prepare(data, 8, 16)

    fuzz([encoded(photo(1, **SMALL), kind)], check)
