import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Networks this small get slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compiler():
    """torch's compiler, forgetting before and after; its settings are put back."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch():
        yield torch._dynamo
    torch._dynamo.reset()
