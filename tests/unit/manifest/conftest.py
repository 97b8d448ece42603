from pathlib import Path

import pytest

from tests.unit.manifest.results import Results


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path)
