"""Files of a hub: one on loopback answers as the real one does."""

import hashlib

import pytest
from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter
from hypothesis import given
from hypothesis import strategies as st

from pipeline.download import hub
from pipeline.errors import UserError
from pipeline.ledger import Unusable
from tests.hub import COMMIT, HubSite, Repository
from tests.web import Page

FILES = {f"train/{number:03d}.tar": bytes([number]) * 5000 for number in range(8)} | {
    "train/deep/000.tar": b"deep",
    "README.md": b"# name",
    "labels.jsonl.tgz": b"labels",
}
REFERENCE = "hf://datasets/owner/name@main"


@pytest.fixture
def repository():
    return Repository(dict(FILES))


@pytest.fixture
def running(repository, monkeypatch):
    gated = Repository({"a.tgz": b"gated"}, token="hf_secret")
    model = Repository({"model.json": b"{}"})
    repositories = {"datasets/owner/name": repository, "datasets/owner/gated": gated, "models/owner/model": model}
    with HubSite(repositories) as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url())
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield site


def test_a_file_comes_whole_and_once(running, files, tmp_path):
    path = files().fetch(f"{REFERENCE}/train/003.tar")
    assert path.read_bytes() == FILES["train/003.tar"] and path.name == "003.tar" and path.is_relative_to(tmp_path / "files")
    asked = running.hits.total()
    assert files().fetch(f"{REFERENCE}/train/003.tar") == path
    assert running.hits.total() == asked + 1  # what the revision stands for


def test_of_a_commit_nothing_is_asked_once_it_is_there(running, files):
    path = files().fetch(f"hf://datasets/owner/name@{COMMIT}/train/003.tar")
    running.requests.clear()
    assert files().fetch(f"hf://datasets/owner/name@{COMMIT}/train/003.tar") == path and not running.requests


def test_a_file_of_a_model_repository(running, files):
    assert files().fetch("hf://owner/model@main/model.json").read_bytes() == b"{}"


def test_files_of_one_name_are_told_apart(running, files):
    paths = {files().fetch(f"{REFERENCE}/{name}") for name in ("train/000.tar", "train/deep/000.tar")}
    assert {path.read_bytes() for path in paths} == {FILES["train/000.tar"], b"deep"}


def test_a_fetched_file_is_deleted_and_fetched_again(running, files):
    path = files().fetch(f"{REFERENCE}/README.md")
    files().done_with(path)
    assert not path.exists()
    assert files().fetch(f"{REFERENCE}/README.md").read_bytes() == b"# name"


def test_the_commit_that_a_revision_stands_for(running, files):
    assert files().commit(f"{REFERENCE}/README.md") == COMMIT
    assert files().commit(f"hf://datasets/owner/name@{'a' * 40}/README.md") == "a" * 40
    assert files().commit("https://host/a.tar") is None and files().commit("a.tar") is None


def test_a_branch_that_moves_does_not_mix_files_of_two_commits(running, files, repository):
    chosen = files()
    chosen.fetch(f"{REFERENCE}/train/000.tar")
    repository.revisions = {"main": "b" * 40, "old": COMMIT}
    chosen.fetch(f"{REFERENCE}/train/001.tar")
    assert chosen.commit(REFERENCE + "/x") == COMMIT and files().commit(REFERENCE + "/x") == "b" * 40


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("train/*.tar", [f"train/{number:03d}.tar" for number in range(8)]),
        ("train/00[1-3].tar", ["train/001.tar", "train/002.tar", "train/003.tar"]),
        ("**/000.tar", ["train/000.tar", "train/deep/000.tar"]),
        ("*/*/000.tar", ["train/deep/000.tar"]),
        ("*.md", ["README.md"]),
        ("train/{000,00[12]}.tar", ["train/000.tar", "train/001.tar", "train/002.tar"]),
    ],
)
def test_patterns(running, files, pattern, found):
    assert files().expand("sources.x.path", f"{REFERENCE}/{pattern}") == [f"{REFERENCE}/{path}" for path in found]


@pytest.mark.parametrize("pattern", ["none/*.tar", "train/*.zip"])
def test_a_pattern_that_matches_nothing(running, files, pattern):
    with pytest.raises(UserError, match=r"^sources.x.path: .* matches no file"):
        files().expand("sources.x.path", f"{REFERENCE}/{pattern}")


def test_what_stands_for_any_folder():
    assert hub.matches(["a", "b", "c"], ["**", "c"]) and hub.matches(["c"], ["**", "c"]) and hub.matches(["a", "b"], ["a", "**"])
    assert not hub.matches(["a", "b"], ["*"]) and not hub.matches(["a"], ["a", "b"])


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4))
def test_a_path_matches_itself_and_stars(path):
    assert hub.matches(path, path) and hub.matches(path, ["*"] * len(path)) and hub.matches(path, ["**"])
    assert not hub.matches(path, ["*"] * (len(path) + 1))


def test_a_gated_file_says_what_to_accept_and_set(running, files, monkeypatch):
    reference = "hf://datasets/owner/gated@main/a.tgz"
    with pytest.raises(UserError) as caught:
        files().fetch(reference)
    assert f"{running.url()}/datasets/owner/gated" in str(caught.value) and "HF_TOKEN" in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert files().fetch(reference).read_bytes() == b"gated"
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("hf://datasets/owner/none@main/a.tar", "the hub shows no such dataset"),
        ("hf://owner/none@main/a.tar", "the hub shows no such model"),
        ("hf://datasets/owner/name@v9/a.tar", "has no revision 'v9'"),
        ("hf://datasets/owner/name@main/../a.tar", "must be hf://"),
        ("hf://datasets/owner/name@main//a.tar", "must be hf://"),
        ("hf://datasets/owner/name/a.tar", "must be hf://"),
    ],
)
def test_mistakes_are_told(running, files, reference, words):
    with pytest.raises(UserError, match=words):
        files().fetch(reference)


def test_a_file_that_is_not_there(running, files):
    with pytest.raises(Unusable, match="no such file at that revision") as caught:
        files().fetch(f"{REFERENCE}/none.tar")
    assert caught.value.reason == "missing_file"


def test_a_hub_that_does_not_answer(files, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unusable) as caught:
        files(attempts=2).fetch(f"{REFERENCE}/a.tar")
    assert caught.value.reason == "connection"
    with pytest.raises(UserError, match=r"^sources.x.path: connection: "):
        files(attempts=1).expand("sources.x.path", f"{REFERENCE}/*.tar")


def test_a_hub_that_is_busy_for_a_while(running, files):
    path = f"/api/datasets/owner/name/revision/{'main'}"
    usual, faults = running.page, [Page(status=500), Page(status=429)]
    running.page = lambda request: faults.pop() if request.path == path and faults else usual(request)
    assert files(attempts=3).fetch(f"{REFERENCE}/README.md").read_bytes() == b"# name"
    faults += [Page(status=500)] * 2
    with pytest.raises(Unusable) as caught:
        files(attempts=2).commit(f"{REFERENCE}/README.md")
    assert caught.value.reason == "http_5xx"


def test_a_file_that_breaks_off_is_tried_again(running, files, repository):
    """huggingface_hub asks three times: twice for what the file is, once for the file."""
    body = FILES["train/000.tar"]
    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
    whole, broken = Page(body, headers=headers), Page(body, headers=headers, cut=1000)
    repository.faults["train/000.tar"] = (whole, whole, broken)
    assert files().fetch(f"{REFERENCE}/train/000.tar").read_bytes() == body


def test_what_a_killed_download_left_is_cleared(running, files, tmp_path):
    path = files().fetch(f"{REFERENCE}/README.md")
    files().done_with(path)
    leftover = path.parent / ".cache/huggingface/download/README.md.etag.incomplete"
    leftover.write_bytes(b"half")
    files().fetch(f"{REFERENCE}/README.md")
    assert not leftover.exists()


def test_a_full_disk_is_named(running, files, repository, full_disk):
    repository.files["large.tar"] = bytes(300_000)
    with full_disk(100_000), pytest.raises(UserError, match=r"300,000 bytes cannot be written .*make room"):
        files().fetch(f"{REFERENCE}/large.tar")


def test_the_bar_counts_megabytes(running, files, repository, capsys):
    repository.files["large.tar"] = bytes(3_000_000)
    files().fetch(f"{REFERENCE}/large.tar")
    shown = capsys.readouterr().err
    assert "100% 3/3 MB" in shown


def test_the_bar_serves_xet_downloads(capsys):
    """What hf_xet reports goes through the reporter of huggingface_hub to the one bar."""

    class Report:
        total_bytes = total_bytes_completed = total_transfer_bytes_completed = 2_000_000
        total_bytes_completion_rate = total_transfer_bytes_completion_rate = 1e6

    with XetDownloadProgressReporter(
        reconstruction_desc="data/a.tar: reconstructing file", total=2_000_000, log_level=20, tqdm_class=hub._Bar
    ) as reporter:
        reporter.update_progress(Report())
    shown = capsys.readouterr().err
    assert "fetch a.tar: 100% 2/2 MB" in shown and "reconstructing" not in shown
