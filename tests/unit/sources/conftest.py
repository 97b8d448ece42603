import json
import tarfile
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from pipeline.artifacts import TABLE
from pipeline.config.running import Downloads, Runtime
from pipeline.config.sources import KINDS
from pipeline.config.steps import CollectSlice, Settings, TableSlice
from pipeline.sources import table as table_step
from pipeline.sources.collect import run
from tests.hub import HubSite, Repository
from tests.pictures import encoded, jpeg, photo, tar_bytes, zip_bytes
from tests.web import HOST, Site


@pytest.fixture
def make():
    return SimpleNamespace(photo=photo, encoded=encoded, tar=tar_bytes, zip=zip_bytes, jpeg=jpeg)


@pytest.fixture
def site():
    """A web server on loopback; site.add(path, body) gives a URL."""
    with Site() as running:
        yield running


@pytest.fixture
def hub(monkeypatch):
    """A hub on loopback: hub(files) gives the start of references to them."""
    repository = Repository()
    with HubSite({"datasets/owner/name": repository}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url())
        monkeypatch.delenv("HF_TOKEN", raising=False)

        def publish(**files):
            repository.files.update(files)
            return "hf://datasets/owner/name@main"

        yield publish


@pytest.fixture
def table(tmp_path):
    """Makes a source's table; gives its sidecar's path, its rows in their order, and what the sidecar says."""

    def go(kind, out=tmp_path / "tables" / "mine.json", downloads=tmp_path / "downloads", fetching=None, **keys):
        needed = {"files": "none.tar"} if kind == "archives" and not {"files", "links"} & keys.keys() else {}
        source = KINDS[kind](kind=kind, **(needed | keys))
        runtime = Runtime(downloads=Downloads(allow_hosts=[HOST], timeout_seconds=5, **(fetching or {})))
        table_step.run(TableSlice(name="mine", source=source), Settings(runtime=runtime), downloads, out)
        rows, sidecar = pq.read_table(out.with_suffix(".parquet")), json.loads(out.read_text())
        assert rows.schema.equals(TABLE)
        assert sidecar["files"]["table"]["rows"] == len(rows)
        info, faults = sidecar["info"], [row for row in rows.to_pylist() if row["fault"]]
        if kind == "archives":
            assert info["read"] == info["chosen"] == len(rows) + sum(info["bad"].values()) + info["duplicates"]
        else:
            assert (info["chosen"], sum(info["bad"].values())) == (len(rows), len(faults))
        return SimpleNamespace(out=out, rows=rows.to_pylist(), info=info)

    return go


@pytest.fixture
def collect(tmp_path):
    """Collects one shard; gives its paths, ledger rows by key (and all of them), and key.json files by key."""

    def go(
        kind,
        shard=0,
        bad=1.0,
        out=tmp_path / "out" / "0.json",
        name="mine",
        sidecar=None,  # of the source's table
        downloads=tmp_path / "downloads",
        fetching=None,
        **keys,
    ):
        source = KINDS[kind](kind=kind, **({"min_side": 16} | keys))
        runtime = Runtime(downloads=Downloads(allow_hosts=[HOST], timeout_seconds=5, **(fetching or {})))
        settings = Settings(runtime=runtime, yields={name: 1 - bad})
        run(CollectSlice(name=name, source=source), settings, shard, sidecar, downloads, out)
        rows = pq.read_table(out.with_suffix(".parquet")).to_pylist()
        with tarfile.open(out.with_suffix(".tar")) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        described = {name[:-5]: json.loads(data) for name, data in files.items() if name.endswith(".json")}
        sidecar = json.loads(out.read_text())
        assert sidecar["files"]["ledger"]["rows"] == sidecar["info"]["seen"] == len(rows)
        assert sidecar["files"]["images"]["rows"] == len(described) == sum(row["status"] == "ok" for row in rows)
        assert sum(sidecar["info"]["bad"].values()) + len(described) == len(rows)
        assert sum(sidecar["info"]["licences"].values()) == len(described)
        by_key = {row["key"]: row for row in rows}
        return SimpleNamespace(out=out, rows=rows, row=by_key, files=files, json=described, sidecar=sidecar)

    return go
