"""A server that listens: uvicorn with limits on how slowly a client may speak, and an end that lets answers finish."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn, cast

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qtransformers.errors import ConfigError
from qtransformers.machine import trim
from qtransformers.native import lib
from qtransformers.serve.config import ServerConfig
from qtransformers.serve.errors import HTTPError, openai_shape
from qtransformers.serve.server import Server

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from qtransformers.serve.router import Router

HEADERS_SECONDS = 10.0  # until a request's headers must have come
IDLE_SECONDS = 65  # that a connection may wait for its next request; more than balancers in front do
DRAIN_LOOK_SECONDS = 0.05  # between two looks at whether answers are under way
BACKLOG = 1024
CONNECTIONS = 4096
SHARE = CONNECTIONS // 4  # that one peer may have
LINGER_SECONDS = 5.0  # that a refused request may go on with its body, which nobody reads
HEAD_BYTES = 1 << 16  # of a request without its body
HEADERS = 100
PIPELINE = 8  # requests of a connection that wait for the one before
RARELY = (50_000, 50, 50)  # for the collector of cycles: what it takes shows as pauses between tokens
TICKS = 600  # of 0.1 s between collections of all; where requests are always under way, five times as many


class Patient(HttpToolsProtocol):
    """A connection whose client can neither fill the memory nor stay for ever, whatever it sends or leaves unread."""

    def __init__(self, *args: Any, stall: float, peers: Counter[Hashable], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stall, self._peers = stall, peers  # seconds; connections of each peer of the server
        self._peer: Hashable = None
        self._part = "none"  # of a request that is being read: none, head, body
        self._idle_bytes = 0  # since the headers, the body or the request went on
        self._n_headers = 0
        self._answering: Any = None  # the request that is answered; `cycle` is the one that was read last
        self._fault: HTTPError | None = None  # why reading stopped
        self._due: asyncio.TimerHandle | None = None  # closes unless what is expected has come
        self._unread: asyncio.TimerHandle | None = None  # looks whether the client reads
        self._left = 0  # bytes to be read when it looked last

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start waiting for headers."""
        transport = cast("asyncio.Transport", transport)
        super().connection_made(transport)
        self._peer = _peer(self.client[0] if self.client else "")
        self._peers[self._peer] += 1
        if self._peers[self._peer] > SHARE:
            transport.abort()
        self._expect(HEADERS_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits any more, and nothing is kept."""
        for timer in (self._due, self._unread):
            if timer is not None:
                timer.cancel()
        self._peers[self._peer] -= 1
        if not self._peers[self._peer]:
            del self._peers[self._peer]
        super().connection_lost(exc)
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True  # which uvicorn says to the last only
            self._answering.message_event.set()
        self.pipeline.clear()  # or they and this hold each other

    def data_received(self, data: bytes) -> None:
        """Parse, unless for too long nothing has come of it."""
        if self.timeout_keep_alive_task is not None and self._part == "none":
            self._expect(HEADERS_SECONDS)  # even of empty lines, with which no request begins
        self._idle_bytes += len(data)
        super().data_received(data)
        if self._idle_bytes > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_too_much())

    def on_message_begin(self) -> None:
        """A request begins; perhaps not the first."""
        super().on_message_begin()
        self._part, self._n_headers = "head", 0
        self._expect(HEADERS_SECONDS)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of the headers, or of what follows a body in chunks."""
        self._n_headers += 1
        if self._n_headers > HEADERS:
            self._stop(_too_much())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """They came."""
        if len(self.pipeline) >= PIPELINE:
            self._stop(HTTPError(400, f"more than {PIPELINE} requests wait on this connection. Read their answers first.", "pipeline"))  # fmt: skip
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > HEAD_BYTES:
            self._stop(_too_much())
        self._part, self._idle_bytes = "body", 0
        self._expect(None)
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Some of it."""
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of a request was read."""
        self._part, self._idle_bytes = "none", 0
        super().on_message_complete()
        self._expect(self.timeout_keep_alive if self.cycle.response_complete else None)

    def on_response_complete(self) -> None:
        """An answer was handed to the system, which does not say that anybody reads it."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._watch()
        if self._part == "body" and self.cycle.response_complete:
            self._expect(LINGER_SECONDS)  # it was refused: a client that still writes its body shall see why

    def pause_writing(self) -> None:
        """Much is unread."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        self._left = sys.maxsize

    def send_400_response(self, msg: str) -> None:
        """Of uvicorn: what was read cannot be parsed, or is too much."""
        self._refuse(self._fault or HTTPError(400, msg, "no_http"))

    def _expect(self, seconds: float | None) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due = None if seconds is None else self.loop.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        if self.flow.read_paused:  # it may have come
            self._expect(HEADERS_SECONDS)
        else:
            self.transport.close()

    def _watch(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
        self._left = sys.maxsize
        self._unread = self.loop.call_later(self._stall, self._look)

    def _look(self) -> None:
        """Aborts at the second look without progress: streams are ended after one `stall`, and say so."""
        left, before = self.transport.get_write_buffer_size(), self._left
        if left >= before:
            self.transport.abort()
        elif left:
            self._left, self._unread = left, self.loop.call_later(self._stall, self._look)

    def _stop(self, fault: HTTPError) -> NoReturn:
        self._fault = fault
        raise fault  # which ends the parser

    def _refuse(self, error: HTTPError) -> None:
        """Close, and say why where no other answer is under way."""
        cycle = self.cycle
        if not self.pipeline and (
            cycle is None or (not cycle.response_started if self._part == "body" else cycle.response_complete)
        ):
            data = msgspec.json.encode(openai_shape(error, ""))
            status = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
            head = f"{status}content-type: application/json\r\ncontent-length: {len(data)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + data)
        self.transport.close()
        self._watch()


def _too_much() -> HTTPError:
    return HTTPError(431, f"the headers are too much; expected at most {HEADERS} of {HEAD_BYTES:,} bytes in all.", "headers")  # fmt: skip


def _peer(address: str) -> Hashable:
    """Whom an address stands for; who has one of IPv6 has all of its network."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return found if isinstance(found, ipaddress.IPv4Address) else found.ipv4_mapped or int(found) >> 64


class Listening(uvicorn.Server):
    """Tells the app when the end has begun, and `ready` where it listens."""

    def __init__(self, config: uvicorn.Config, server: Server | Router, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._server, self._ready = server, ready
        self._ticks = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def on_tick(self, counter: int) -> bool:
        """Collect now and then what the collector leaves, as it runs rarely, and let go of what is free; best while nobody waits."""
        self._ticks += 1
        if self._ticks >= (5 * TICKS if self.server_state.tasks else TICKS):
            self._ticks = 0
            gc.collect()
            trim()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No answer begins from here on; those under way have the drain's seconds, in which /health says so to who asks."""
        self._server.draining = True
        end = time.monotonic() + self._server.config.drain
        while self.server_state.tasks and not self.force_exit and time.monotonic() < end:
            await asyncio.sleep(DRAIN_LOOK_SECONDS)
        self.config.timeout_graceful_shutdown = max(1, round(end - time.monotonic()))
        await super().shutdown(sockets)


def uvicorn_config(app: ASGIApp, c: ServerConfig) -> uvicorn.Config:
    """How uvicorn serves an app."""
    return uvicorn.Config(
        app,
        http=partial(Patient, stall=c.stall, peers=Counter()),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=max(1, round(c.drain)),
    )


def serve(server: Server | Router, ready: Callable[[str], None], app: ASGIApp) -> None:
    """Listen until SIGTERM or SIGINT; `ready` gets the address. ConfigError where it cannot be listened at, and what keeps the first model from loading."""
    c = server.config
    config = uvicorn_config(app, c)
    bound = listen(c.host, c.port)
    listening = Listening(config, server, ready)
    errors: list[Exception] = []

    def give_up(error: Exception) -> None:
        errors.append(error)
        listening.should_exit = True

    server.give_up = give_up
    gc.set_threshold(*RARELY)
    lib.watch_mappings()
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
