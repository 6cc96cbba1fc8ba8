"""What all tests share."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny matrices: a second thread only makes the first one wait."""
    torch.set_num_threads(1)  # of the session: fixtures train models, too
