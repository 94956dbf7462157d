"""Servers on free ports of loopback, in a thread of the tests' own process."""

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

from qtransformers.serve.app import app_of
from qtransformers.serve.config import ServerConfig
from qtransformers.serve.models import Models
from qtransformers.serve.painters import Painters
from qtransformers.serve.run import Listening, listen, uvicorn_config
from qtransformers.serve.server import Server


@contextmanager
def running(specs, config=None, keep_alive=None, painters=()):
    """The base URL of a server, and the `Server`."""
    server = Server(
        Models(specs, keep_alive, may_be_none=bool(painters)),
        replace(config or ServerConfig(port=0), drain=5),
        Painters(painters, keep_alive),
    )
    sock = listen(server.config.host, 0)
    config = uvicorn_config(app_of(server), server.config)
    uv = Listening(config, server, lambda url: None)
    thread = threading.Thread(target=uv.run, args=([sock],), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        for _ in range(1000):
            if uv.started and (*server.models.entries, *server.painters.all)[0].state in ("ready", "broken"):
                break
            time.sleep(0.01)
        yield url, server
    finally:
        uv.should_exit = True
        thread.join(20)
        sock.close()
        assert not thread.is_alive()
