"""What tests that break things share."""

from tests.chain import chain, whole  # noqa: F401
from tests.drivers import small  # noqa: F401
from tests.jobs import warmed  # noqa: F401
from tests.training import server, slice_of, toy, trainer, vae  # noqa: F401
