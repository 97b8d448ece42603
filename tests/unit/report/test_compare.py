"""Cards of finished runs side by side."""

import copy
import json
import subprocess
import sys

import pytest

from pipeline.errors import UserError
from pipeline.fingerprint import ROOT
from pipeline.report import card as card_step
from pipeline.report.compare import DEPENDS_ON, compare, made_differently, run

ASKED = {"score": 0.46, "images": 80, "prompts": {"sha256": "a"}}
FURTHER = {
    "fid_by_resize": {"clean": 8.314, "legacy_pytorch": 9.0}, "fid_infinity": 7.5, "precision": 0.9, "recall": 0.8,
    "density": 1.1, "coverage": 0.95, "geneval": ASKED, "cmmd": 0.05, "clip_fid": 3.0, "fd_dino": 120.0,
}  # fmt: skip


@pytest.fixture
def card(finished):
    """A card as the card step writes it, with every score there is."""
    evaluation = json.loads(finished.card.read_text())
    evaluation["metrics"] |= FURTHER
    for shares in evaluation["metrics"]["accuracy"].values():
        shares["all"] = 0.7
    model = evaluation["clip_score_model"]
    evaluation |= {"clip_fid_model": model, "cmmd_model": model, "fd_dino_model": {**model, "ref": "hf:dino"}}
    finished.card.write_text(json.dumps(evaluation))
    card_step.run(finished.settings, finished.card, finished.stages, finished.records, finished.results / "fid_coco.json")
    return json.loads((finished.results / "fid_coco.json").read_text())


@pytest.fixture
def changed(card):
    """The card with one value changed, by its dotted name."""

    def make(name, value):
        other = copy.deepcopy(card)
        *path, last = name.split(".")
        place = other
        for key in path:
            place = place[key]
        place[last] = value
        return other

    return make


def refused(a, b):
    return {row.name for row in compare(a, b) if row.refused}


def test_every_score_that_can_be_compared_is_in_the_card(card):
    assert [row.name for row in compare(card, card)] == list(DEPENDS_ON)


def test_scores_measured_alike_are_subtracted(card, changed):
    rows = {row.name: row for row in compare(card, changed("fid", 7.314))}
    assert rows["fid"].difference == pytest.approx(-1) and rows["kid"].difference == 0
    assert refused(card, changed("weights.sha256", "0" * 64)) == refused(card, changed("sampler.guidance", 9)) == set()


WITH_FID = {"fid", "fid_infinity", "kid", "precision", "recall", "density", "coverage"}
BY_RESIZE = {"fid_by_resize.clean", "fid_by_resize.legacy_pytorch"}
OTHERS = {"clip_fid", "cmmd", "fd_dino"}
DRAWN = {"geneval.score"}
CAPTIONED = {"clip_score", "accuracy.one_object.all", "accuracy.two_objects.all"}


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("ids_sha256", "0" * 64, WITH_FID | BY_RESIZE | OTHERS),
    ("captions_sha256", "0" * 64, CAPTIONED),
    ("images", 30_000, WITH_FID | BY_RESIZE | OTHERS | CAPTIONED),
    ("px", 512, WITH_FID | BY_RESIZE | OTHERS | CAPTIONED | DRAWN),
    ("image_format", "jpeg", WITH_FID | BY_RESIZE | OTHERS | CAPTIONED | DRAWN),
    ("geneval.images", 2212, DRAWN),
    ("geneval.prompts.sha256", "b", DRAWN),
    ("reference_preparation", "none", WITH_FID | BY_RESIZE | OTHERS),
    ("feature_network.identity", "0" * 64, WITH_FID | BY_RESIZE),
    ("feature_network.input_px", 299, WITH_FID | BY_RESIZE),
    ("resize", "legacy_pytorch", WITH_FID),
    ("clip_score_model.sha256", "0" * 64, {"clip_score"}),
    ("clip_fid_model.sha256", "0" * 64, {"clip_fid"}),
    ("cmmd_model.sha256", "0" * 64, {"cmmd"}),
    ("fd_dino_model.sha256", "0" * 64, {"fd_dino"}),
    ("clip_score_model.ref", "/elsewhere/clip", set()),
    ("feature_network.name", "/elsewhere/clip", set()),
])  # fmt: skip
def test_a_score_is_refused_by_what_it_depends_on_and_by_nothing_else(card, changed, name, value, expected):
    other = changed(name, value)
    assert refused(card, other) == refused(other, card) == expected
    reasons = [row.refused for row in compare(card, other) if row.refused]
    assert all(name.partition(".")[0] in reason and "\n" not in reason for reason in reasons)


def test_a_score_that_one_card_lacks_is_shown_and_not_subtracted(card):
    older = {key: value for key, value in card.items() if key != "cmmd"}
    rows = {row.name: row for row in compare(older, card)}
    assert (rows["cmmd"].a, rows["cmmd"].b, rows["cmmd"].difference, rows["cmmd"].refused) == (None, 0.05, None, "")


def test_what_made_them_differently_is_listed(card, changed):
    assert made_differently(card, card) == []
    assert made_differently(card, changed("sampler.guidance", 5.0)) == [("sampler.guidance", "3.0", "5.0")]
    assert made_differently(card, changed("git_commit", "a" * 40)) == [("git_commit", "343434343434", "a" * 12)]
    ((name, _, right),) = made_differently(card, changed("cost.dollars", 12.5))
    assert (name, right) == ("cost.dollars", "12.5")


@pytest.fixture
def files(tmp_path, card, changed):
    """Cards on disk: one, and another made of it."""

    def write(name=None, value=None):
        found = []
        for number, content in enumerate((card, changed(name, value) if name else card)):
            found.append(tmp_path / f"{number}.json")
            found[-1].write_text(json.dumps(content))
        return found

    return write


def test_the_table_has_both_values_and_the_difference(files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run(*files("fid", 9.0))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "fid 8.31 9.00 +0.686" in lines and "cmmd 0.0500 0.0500 0" in lines
    assert not any("Not subtracted" in line for line in lines)


def test_what_must_not_be_subtracted_is_not_and_the_reason_is_said(files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(UserError, match=r"7 of 16 scores"):
        run(*files("resize", "legacy_pytorch"))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "fid 8.31 8.31 refused" in lines and "cmmd 0.0500 0.0500 0" in lines
    assert "Not subtracted, fid: resize differs (clean and legacy_pytorch)" in lines


def test_side_by_side_shows_both_without_differences(files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run(*files("resize", "legacy_pytorch"), side_by_side=True)
    out = capsys.readouterr().out
    assert "fid 8.31 8.31" in [" ".join(line.split()) for line in out.splitlines()] and "B - A" not in out


def test_the_card_of_a_single_stage_is_one_too(finished, card, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps(card))
    run(finished.card, tmp_path / "run.json")
    assert "Not subtracted" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ['{"a": 1}', "[]", '"text"', '{"metrics": {"fid": 1}}'])
def test_a_file_that_is_no_card_is_refused(tmp_path, files, content):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(UserError, match=r"other\.json: not an evaluation card, it lacks"):
        run(files()[0], tmp_path / "other.json")


def test_control_characters_of_a_card_do_not_reach_the_terminal(files, capsys):
    run(*files("device", "CPU \x1b[31m red\nnew line"))
    out = capsys.readouterr().out
    assert "\x1b" not in out and "CPU �[31m red�new line" in out


def test_the_exit_code_tells_scripts(files):
    def code(*options):
        command = [sys.executable, "-m", "pipeline", "compare", *map(str, options)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).returncode

    alike, other = files("resize", "legacy_pytorch")
    assert (code(alike, alike), code(alike, other), code(alike, other, "--side-by-side")) == (0, 1, 0)
