"""A finished run."""

import pytest

from tests.unit.report.runs import write_run


@pytest.fixture
def finished(tmp_path):
    """Paths of all files that a report reads, and settings with a price."""
    return write_run(tmp_path)
