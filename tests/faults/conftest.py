"""What tests that break things share."""

from tests.jobs import warmed  # noqa: F401
from tests.training import server, slice_of, toy, trainer, vae  # noqa: F401
