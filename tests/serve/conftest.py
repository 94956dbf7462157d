"""A server of the demo model for all tests of the folder."""

import pytest

pytest.importorskip("starlette")

import httpx2 as httpx

from qtransformers.serve.models import ModelSpec
from servers import running


@pytest.fixture(scope="session")
def demo(data):
    """How the demo model is served."""
    return ModelSpec(str(data / "demo-Q8_0.gguf"), ("demo", "gpt-test"), {"threads": 1, "parallel": 4})


@pytest.fixture(scope="session")
def served(demo):
    """The URL of a server of the demo model, and the server."""
    with running([demo]) as found:
        yield found


@pytest.fixture(scope="session")
def http(served):
    """A client of it."""
    with httpx.Client(base_url=served[0], timeout=60) as client:
        yield client
