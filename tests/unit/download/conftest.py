"""A web server on loopback, and downloads that may ask it and do not wait long."""

import io
import resource
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from pipeline.config.running import Downloads
from pipeline.download.files import Files
from pipeline.download.images import Wanted, fetch_images
from pipeline.download.retry import Retry
from pipeline.ledger import Unusable
from tests.web import HOST, Site

QUICK = Retry(first=0.01, longest=0.05)


@pytest.fixture(scope="session")
def jpeg():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def site():
    with Site() as running:
        yield running


@pytest.fixture
def downloads():
    return Downloads(allow_hosts=[HOST], timeout_seconds=5)


@pytest.fixture
def full_disk():
    """A context in which no file may become larger than some bytes."""

    @contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def files(tmp_path, downloads):
    """Makes a `Files` with some keys of runtime.downloads changed."""
    return lambda retry=QUICK, **keys: Files(tmp_path / "files", downloads.model_copy(update=keys), retry)


@pytest.fixture
def fetch(tmp_path, downloads):
    """Outcomes of URLs (or Wanted), in order; images as bytes, failures as their class."""

    def run(*wanted, opt_out=(), retry=QUICK, **keys):
        wanted = [one if isinstance(one, Wanted) else Wanted(one) for one in wanted]
        chosen = downloads.model_copy(update=keys)
        return list(fetch_images(wanted, tmp_path / "journal", chosen, opt_out, retry=retry))

    return run


@pytest.fixture
def outcome(fetch):
    """The class of one URL's failure, or its bytes."""

    def run(url, **keys):
        (fetched,) = fetch(url, **keys)
        return fetched.image.reason if isinstance(fetched.image, Unusable) else fetched.image

    return run
