"""Tokens, keys and signed links: no file and no line that a run writes has them."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts import write_json
from pipeline.config.sources import KINDS
from pipeline.config.steps import CollectSlice
from tests.hub import HubSite, Repository
from tests.pictures import jpeg, tar_bytes
from tests.training import command_line
from tests.web import HOST, Page, Site

SECRET = "sEcReT0123456789"
KEYS = {"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET, "HUGGING_FACE_HUB_TOKEN": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET}


@pytest.fixture
def collect(server, tmp_path):
    """collect(kind, keys of the source): one shard, by the command line; the exit code."""

    def go(kind, environment=None, **keys):
        runtime = {"downloads": {"allow_hosts": [HOST], "attempts": 1, "timeout_seconds": 5}}
        rest = {"validation": {}, "report": {}, "evaluation": None, "sources": {"mine": {"min_yield": 0.0}}}
        write_json(tmp_path / "run_config.json", {"runtime": runtime, **rest})
        config = CollectSlice(name="mine", source=KINDS[kind](kind=kind, min_side=8, **keys)).to_json()
        arguments = ["collect", "0", "--config", config, "--settings", "run_config.json"]
        arguments += ["--downloads", "downloads", "--out", "out/00000.json"]
        process = server.Process(target=command_line, args=(arguments, KEYS | (environment or {}), tmp_path, tmp_path / "log"))
        process.start()
        process.join(60)
        return process.exitcode

    return go


def holds_secret(folder, *but):
    """Files with the secret in them, or in their names."""
    paths = [path for path in folder.rglob("*") if path.name not in but]
    return [path for path in paths if SECRET in str(path) or (path.is_file() and SECRET.encode() in path.read_bytes())]


@pytest.mark.parametrize(("token", "code"), [(SECRET, 0), ("another", 1)], ids=["right", "wrong"])
def test_a_gated_repository(collect, tmp_path, token, code):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"image": {"bytes": jpeg(1)}, "caption": "one"}]), buffer)
    repository = Repository({"a.parquet": buffer.getvalue()}, token=token)
    with HubSite({"datasets/owner/name": repository}) as hub:
        environment = {"HF_ENDPOINT": hub.url(), "HF_HUB_DISABLE_TELEMETRY": "1"}
        columns = {"image": "image", "captions": ["caption"]}
        found = collect("hf_parquet", environment, files="hf://datasets/owner/name@main/a.parquet", columns=columns)
    assert found == code, (tmp_path / "log").read_text()
    assert not holds_secret(tmp_path)


@pytest.mark.parametrize("page", ["there", "gone", "elsewhere"])
def test_a_signed_link(collect, tmp_path, page):
    """In a file of links, which is the user's own."""
    pages = {"there": Page(tar_bytes([("a.jpg", jpeg(1))])), "gone": Page(status=403)}
    pages["elsewhere"] = Page(status=302, headers={"Location": f"http://user:{SECRET}@{HOST}/?Signature={SECRET}"})
    with Site() as site:
        site.pages["/a.tar"] = pages[page]
        (tmp_path / "links.txt").write_text(f"a.tar\t{site.url('/a.tar')}?Expires=1&Signature={SECRET}\n")
        collect("archives", links=str(tmp_path / "links.txt"))
        assert any(SECRET in str(request) for request in site.requests) or site.requests
    assert not holds_secret(tmp_path, "links.txt")


def test_a_password_in_a_link_is_refused_and_not_shown(collect, tmp_path):
    (tmp_path / "links.txt").write_text(f"a.tar\thttp://user:{SECRET}@{HOST}:9/a.tar\n")
    collect("archives", links=str(tmp_path / "links.txt"))
    (row,) = pq.read_table(tmp_path / "out/00000.parquet").to_pylist()
    assert row["reason"] == "bad_url" and "password" in row["detail"] and not holds_secret(tmp_path, "links.txt")


def test_card_report_model_and_records(chain, whole, tmp_path, server):
    folder = chain.copy(whole, tmp_path.name)
    for step in chain.steps:
        if step.command in ("train", "card", "report", "model"):
            log = tmp_path / "log"
            process = server.Process(target=command_line, args=(step.arguments, KEYS, folder, log))
            process.start()
            process.join(120)
            assert process.exitcode == 0, log.read_text()
    assert not holds_secret(folder) and not holds_secret(tmp_path)
