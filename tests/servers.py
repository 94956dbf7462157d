"""Servers on free ports of loopback, in a thread of the tests' own process; replicas are processes beside it."""

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

from qtransformers.serve.app import app_of
from qtransformers.serve.config import ServerConfig
from qtransformers.serve.models import Models
from qtransformers.serve.painters import Painters
from qtransformers.serve.router import Router, routed
from qtransformers.serve.run import Listening, listen, uvicorn_config
from qtransformers.serve.server import Server

PATIENCE = 300  # seconds: processes start slowly on a busy machine

LONG = {"prompt": "Once", "max_tokens": 900, "stream": True, "min_tokens": 900}  # an answer


@contextmanager
def running(specs, config=None, keep_alive=None, painters=()):
    """The base URL of a server, and the `Server`."""
    server = Server(
        Models(specs, keep_alive, may_be_none=bool(painters)),
        replace(config or ServerConfig(port=0), drain=5),
        Painters(painters, keep_alive),
    )
    with listening(app_of(server), server.config, server) as (url, uv):
        until(lambda: uv.started and (*server.models.entries, *server.painters.all)[0].state in ("ready", "broken"))
        yield url, server


@contextmanager
def replicated(specs, n=2, painters=(), **config):
    """URL and `Router` of a server with `n` processes, all of them ready."""
    router = Router(specs, ServerConfig(port=0, **config), n, painters=painters)
    with listening(routed(router), replace(router.config, drain=5), router) as (url, _):
        until(lambda: all(r.state == "ready" for r in router.replicas))
        yield url, router
    assert not any(r._process.is_alive() for r in router.replicas)


@contextmanager
def listening(app, config, server):
    """The URL at which an app listens, and the uvicorn that does."""
    sock = listen(config.host, 0)
    uv = Listening(uvicorn_config(app, config), server, lambda url: None)
    thread = threading.Thread(target=uv.run, args=([sock],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}", uv
    finally:
        uv.should_exit = True
        thread.join(30)
        sock.close()
        assert not thread.is_alive()


def until(there):
    """Wait for it."""
    end = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


def settled(entry):
    """Whether nothing is under way any more, soon."""
    for _ in range(500):
        usage = entry.loaded.usage
        if not (entry.answers or entry.users or usage.running or usage.waiting):
            return usage
        time.sleep(0.01)
    raise AssertionError((entry, usage))
