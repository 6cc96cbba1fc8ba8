"""What all tests share."""

import pytest


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny matrices: a second thread only makes the first one wait."""
    torch = pytest.importorskip("torch")
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
