"""A server on a free port of loopback, in a thread of the tests' own process."""

import threading
import time
from contextlib import contextmanager

import pytest

pytest.importorskip("starlette")

import httpx2 as httpx
import uvicorn

from qtransformers.serve.app import app_of
from qtransformers.serve.config import ServerConfig
from qtransformers.serve.models import Models, ModelSpec
from qtransformers.serve.run import Patient, listen
from qtransformers.serve.server import Server


@contextmanager
def running(specs, config=None, keep_alive=None):
    """The base URL of a server, and the `Server`."""
    server = Server(Models(specs, keep_alive), config or ServerConfig(port=0))
    sock = listen(server.config.host, 0)
    uv = uvicorn.Server(uvicorn.Config(app_of(server), http=Patient, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=uv.run, args=([sock],), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        for _ in range(1000):
            if uv.started and server.models.entries[0].state in ("ready", "broken"):
                break
            time.sleep(0.01)
        yield url, server
    finally:
        uv.should_exit = True
        thread.join(20)
        sock.close()
        assert not thread.is_alive()


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
