"""Fixtures of tests that need diffusers."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The models are small, and torch's threads spin while they wait."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    pytest.importorskip("accelerate")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
