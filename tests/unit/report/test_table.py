import json

import pytest

from pipeline.errors import UserError
from pipeline.report import card as card_step
from pipeline.report.environment import settings_of
from pipeline.report.table import run


@pytest.fixture
def printed(finished, monkeypatch, capsys):
    """What is printed for the run, as lines of single-spaced words."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(finished.results.parent)
    card_step.run(finished.settings, finished.card, finished.stages, finished.records, finished.results / "fid_coco.json")

    def lines():
        from pathlib import Path

        run(Path("results/fid_coco.json"))
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    return lines


def test_scores_beside_what_they_are_read_by(printed):
    lines = printed()
    assert "FID 8.31 0.610 2.05 152" in lines
    assert "KID 0.0021 ± 0.0004 – – –" in lines
    assert "CLIP score 29.2 31.5 – –" in lines
    assert "FID: distance of the drawn images from the real ones, lower is better" in lines


def test_further_scores_stand_beside_their_scale(printed, finished):
    card = json.loads(finished.card.read_text())
    card["metrics"] |= {
        "cmmd": 0.0521, "fid_by_resize": {"clean": 8.314, "legacy_pytorch": 9.5}, "fid_infinity": 2.75, "fid_bias": 5.564,
        "fid_interval": [5.97, 10.02], "precision": 0.958, "recall": 0.981, "density": 1.1, "coverage": None,
    }  # fmt: skip
    card["cmmd_model"] = card["clip_score_model"]
    for kind, value in (("floor", 0.0267), ("vae", 0.0002), ("ceiling", 4.55)):
        card["scale"][kind]["cmmd"] = value
    finished.card.write_text(json.dumps(card))
    card_step.run(finished.settings, finished.card, finished.stages, finished.records, finished.results / "fid_coco.json")
    lines = printed()
    assert "FID 8.31 5.97–10.0 0.610 2.05 152" in lines and "CMMD 0.0521 0.0267 0.0002 4.55" in lines
    assert "FID legacy 9.50 – – –" in lines and "FID∞ 2.75 – – –" in lines
    assert "precision 0.958 – – –" in lines and not any(line.startswith("coverage") for line in lines)


def test_a_card_of_an_older_program_has_none_of_them(printed):
    assert not any(line.startswith(("CMMD", "precision", "FID legacy", "FID∞")) for line in printed())


def test_geneval_stands_with_its_tasks_and_its_detector(printed, finished):
    assert not any(line.startswith("GenEval") for line in printed())
    card = json.loads(finished.card.read_text())
    card["metrics"]["geneval"] = {"score": 0.464, "tasks": {"two_object": 0.5, "colors": 0.75}, "images": 2212, "self_test": 0.98}
    finished.card.write_text(json.dumps(card))
    card_step.run(finished.settings, finished.card, finished.stages, finished.records, finished.results / "fid_coco.json")
    told = next(line for line in printed() if line.startswith("GenEval"))
    assert "0.464 on 2,212 pictures (two object 50.0 %, colors 75.0 %; the detector finds 98.0 % in real images)" in told


def test_weights_that_were_chosen_are_named_with_their_images(printed, finished):
    assert not any(line.startswith("Weights:") for line in printed())
    card = json.loads(finished.card.read_text())
    card["weights"] |= {"file": "best.safetensors", "images_seen_total": 99328}
    finished.card.write_text(json.dumps(card))
    card_step.run(finished.settings, finished.card, finished.stages, finished.records, finished.results / "fid_coco.json")
    told = "Weights: best.safetensors, averaged over training, the lowest FID of the curve, after 99,328 images"
    assert told in printed() and (told.partition(": ")[2] in dict(settings_of(card)).values())


def test_accuracies_by_attribute(printed):
    lines = printed()
    assert "shape 81.0 % 52.0 % 100.0 % 99.0 %" in lines
    assert "one object two objects one object two objects" in lines


def test_it_ends_with_the_report_and_the_grid(printed, finished):
    (finished.results / "report.html").write_text("page")
    lines = printed()
    assert "Training: 4.2 min in 3 stages on CPU (2 threads), $0.007 at $0.10 a device-hour" in lines
    assert "All steps: 31 s in 3 processes, 1 of them loaded torch" in lines
    assert lines[-2:] == ["Report page: results/report.html", "Sample grid: results/eval/high_full/samples.png"]


def test_a_page_that_is_not_there_comes_with_its_command(printed):
    assert "Report page: results/report.html (not made yet: snakemake --cores all results/report.html)" in printed()


def test_a_file_that_is_no_card(finished):
    with pytest.raises(UserError, match=r"card\.json: not the evaluation card of a run, it lacks fid"):
        run(finished.card)
