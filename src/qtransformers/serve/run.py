"""A server that listens: uvicorn with limits on how slowly a client may speak, and an end that lets answers finish."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qtransformers.errors import ConfigError
from qtransformers.serve.app import app_of
from qtransformers.serve.server import Server

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from qtransformers.serve.router import Router

HEADERS_SECONDS = 10.0  # until a request's headers must have come
IDLE_SECONDS = 65  # that a connection may wait for its next request; more than balancers in front do
DRAIN_LOOK_SECONDS = 0.05  # between two looks at whether answers are under way
BACKLOG = 1024
CONNECTIONS = 4096
RARELY = (50_000, 50, 50)  # for the collector of cycles: what it takes shows as pauses between tokens


class Patient(HttpToolsProtocol):
    """Closes connections whose headers do not come in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for headers."""
        super().connection_made(transport)
        self._headers_due = self.loop.call_later(HEADERS_SECONDS, transport.close)

    def on_message_begin(self) -> None:
        """A request begins; perhaps not the first."""
        super().on_message_begin()
        self._headers_due.cancel()
        self._headers_due = self.loop.call_later(HEADERS_SECONDS, self.transport.close)

    def on_headers_complete(self) -> None:
        """They came."""
        self._headers_due.cancel()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits any more."""
        self._headers_due.cancel()
        super().connection_lost(exc)


class Listening(uvicorn.Server):
    """Tells the app when the end has begun, and `ready` where it listens."""

    def __init__(self, config: uvicorn.Config, server: Server | Router, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._server, self._ready = server, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No answer begins from here on; those under way have the drain's seconds, in which /health says so to who asks."""
        self._server.draining = True
        end = time.monotonic() + self._server.config.drain
        while self.server_state.tasks and not self.force_exit and time.monotonic() < end:
            await asyncio.sleep(DRAIN_LOOK_SECONDS)
        self.config.timeout_graceful_shutdown = max(1, round(end - time.monotonic()))
        await super().shutdown(sockets)


def serve(server: Server | Router, ready: Callable[[str], None], app: ASGIApp | None = None) -> None:
    """Listen until SIGTERM or SIGINT; `ready` gets the address. ConfigError where it cannot be listened at, and what keeps the first model from loading."""
    c = server.config
    config = uvicorn.Config(
        app or app_of(server),  # type: ignore[arg-type]
        http=Patient,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=max(1, round(c.drain)),
        h11_max_incomplete_event_size=1 << 16,
    )
    bound = listen(c.host, c.port)
    listening = Listening(config, server, ready)
    errors: list[Exception] = []

    def give_up(error: Exception) -> None:
        errors.append(error)
        listening.should_exit = True

    server.give_up = give_up
    gc.set_threshold(*RARELY)
    # uvicorn sends itself the signal again once it has ended; then that is no news, and we end with 0.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        listening.run([bound])
    finally:
        signal.signal(signal.SIGTERM, before)
        bound.close()
    if errors:
        raise errors[0]


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound there; ConfigError."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, proto)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        return found
    except (OSError, UnicodeError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise ConfigError(f"{host}:{port} cannot be listened at: {reason}. Choose another with --host and --port.") from None  # fmt: skip


def log_to_stderr(level: int = logging.INFO) -> None:
    """The log's lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("qtransformers.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level if name.startswith("q") else logging.WARNING)
        logger.propagate = False
