import base64
import json
import re

import pytest

from pipeline.errors import UserError
from pipeline.export.push import listed, run
from pipeline.export.trained import run as export
from tests.web import Page, Site

REPO, TOKEN = "someone/some-model", "hf_secret"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(Site):
    """Takes commits with their files inside, as the hub does for small ones."""

    def __init__(self):
        super().__init__()
        self.files, self.made = {}, []

    async def _answer(self, request):
        self.body = await request.content.read()  # of any size
        return await super()._answer(request)

    def page(self, request):
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return Page(status=403, headers={"X-Error-Message": "may not write"})
        if request.path == "/api/repos/create":
            self.made.append(json.loads(self.body))
            return answer({"url": self.url(f"/{REPO}"), "name": REPO, "id": "1"})
        if request.path == "/api/validate-yaml":
            return answer({"errors": [], "warnings": []})
        if request.path.endswith("/preupload/main"):
            files = json.loads(self.body)["files"]
            return answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        if request.path.endswith("/commit/main"):
            for line in map(json.loads, self.body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return answer({"success": True, "commitOid": COMMIT, "commitUrl": self.url(f"/{REPO}/commit/{COMMIT}")})
        return Page(status=404)


def answer(value):
    return Page(json.dumps(value).encode(), headers={"Content-Type": "application/json"})


@pytest.fixture
def hub(monkeypatch):
    with Hub() as site:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", site.url())
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield site


@pytest.fixture
def model(stage_folder, tmp_path):
    export(stage_folder, tmp_path / "model", {"steps": 9, "guidance": 2.0})
    (tmp_path / "model" / "notes.txt").write_text("mine")
    (tmp_path / "model" / "vae" / ".config.json.1.part").write_text("half")
    return tmp_path / "model"


def test_a_dry_run_lists_every_file_and_sends_nothing(model, hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run(REPO, model, private=True, dry_run=True)
    told = capsys.readouterr().out
    rows = {name: int(size.replace(",", "")) for size, name in re.findall(r"^ *([\d,]+)  (\S.*)$", told, re.M)}
    total = rows.pop("in all")
    assert rows == {str(file): (model / file).stat().st_size for file in listed(model)} and sum(rows.values()) == total
    assert {"model_index.json", "README.md", "pipeline.py", "transformer/modeling_microdit.py"} <= set(rows)
    assert not {"notes.txt", "vae/.config.json.1.part"} & set(rows)
    assert told.startswith(f"{len(rows)} files to {REPO} (private") and "# Text to image, 16 px" in told
    assert told.endswith("Nothing was sent: this was a dry run.\n")
    assert not hub.requests and TOKEN not in told


def test_the_folder_arrives_as_it_is(model, hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run(REPO, model, private=True, dry_run=False)
    assert hub.files == {str(file): (model / file).read_bytes() for file in listed(model)}
    assert {"name": "some-model", "organization": "someone", "visibility": "private"}.items() <= hub.made[0].items()
    told = capsys.readouterr()
    assert "Sent: " in told.out and TOKEN not in told.out + told.err


def test_what_the_hub_refuses_is_one_line_without_the_token(model, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UserError, match=f"push-to-hub: {REPO} was not written") as caught:
        run(REPO, model, private=False, dry_run=False)
    assert "hf_other" not in str(caught.value) and "\n" not in str(caught.value) and not hub.files


def test_without_a_token_nothing_is_sent(model, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match=r"no token; put one that may write to someone/some-model into .* HF_TOKEN"):
        run(REPO, model, private=False, dry_run=False)
    assert not hub.requests


@pytest.mark.parametrize(
    ("repo", "harm", "told"),
    [
        ("some model", None, "some model: not the name of a repository, give OWNER/NAME"),
        ("some-model", None, "some-model: give the owner too"),
        (REPO, "model_index.json", r"model_index\.json: not readable JSON"),
        (REPO, "README.md", r"README\.md: missing; export the model again"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(model, hub, repo, harm, told):
    if harm:
        (model / harm).unlink()
    with pytest.raises(UserError, match=told):
        run(repo, model, private=False, dry_run=True)
    assert not hub.requests
