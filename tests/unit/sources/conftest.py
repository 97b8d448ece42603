import io
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config.sources import KINDS
from pipeline.config.steps import CollectSlice, Settings
from pipeline.sources.collect import run


def photo(seed=0, width=48, height=40):
    """A smooth random picture: noise enlarged, so that it survives JPEG."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tar_bytes(members, kind="w"):
    """A tar of (name, bytes) or ready TarInfo members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=kind) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                name, data = member
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def make():
    return SimpleNamespace(photo=photo, encoded=encoded, tar=tar_bytes, jpeg=lambda seed=0: encoded(photo(seed)))


@pytest.fixture
def collect(tmp_path):
    """Collects one shard; gives its paths, ledger rows by key (and all of them), and key.json files by key."""

    def go(
        kind, shard=0, bad=1.0, out=tmp_path / "out" / "0.json", name="mine", table=None, downloads=tmp_path / "downloads", **keys
    ):
        source = KINDS[kind](kind=kind, **({"min_side": 16} | keys))
        run(CollectSlice(name=name, source=source), Settings(yields={name: 1 - bad}), shard, table, tmp_path / "downloads", out)
        rows = pq.read_table(out.with_suffix(".parquet")).to_pylist()
        with tarfile.open(out.with_suffix(".tar")) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        described = {name[:-5]: json.loads(data) for name, data in files.items() if name.endswith(".json")}
        sidecar = json.loads(out.read_text())
        assert sidecar["files"]["ledger"]["rows"] == sidecar["info"]["seen"] == len(rows)
        assert sidecar["files"]["images"]["rows"] == len(described) == sum(row["status"] == "ok" for row in rows)
        assert sum(sidecar["info"]["bad"].values()) + len(described) == len(rows)
        by_key = {row["key"]: row for row in rows}
        return SimpleNamespace(out=out, rows=rows, row=by_key, files=files, json=described, sidecar=sidecar)

    return go
