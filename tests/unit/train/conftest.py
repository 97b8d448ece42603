"""What the tests of training share."""

import pytest
import torch

from tests.jobs import warmed  # noqa: F401
from tests.training import manifest, server, slice_of, toy, toy_high, trainer, vae  # noqa: F401


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small get slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
