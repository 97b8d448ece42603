"""A finished run."""

from types import SimpleNamespace

import pytest

from pipeline.config.steps import Settings
from tests.unit.report.runs import (
    STAGES,
    picture,
    write_evaluation,
    write_gallery,
    write_manifest,
    write_records,
    write_stage,
)


@pytest.fixture
def finished(tmp_path):
    """Paths of all files that a report reads, and settings with a price."""
    results = tmp_path / "results"
    evaluation = results / "eval" / STAGES[-1][0]
    write_gallery(evaluation)
    write_gallery(evaluation, 6, "failures.json")
    (evaluation / "samples.png").write_bytes(picture(5))
    return SimpleNamespace(
        results=results,
        settings=Settings(report={"title": "Scenes <1>", "dollars_per_hour": 0.1}),
        card=write_evaluation(evaluation),
        evaluation=evaluation,
        stages=[write_stage(results / "train", i) for i in range(len(STAGES))],
        manifests=[write_manifest(results / "manifests", i) for i in range(len(STAGES))],
        records=write_records(results / "work" / "processes"),
    )
