"""One HTTP exchange: a body in, JSON or a stream of events out."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from qtransformers.serve.config import ServerConfig
from qtransformers.serve.errors import HTTPError

PING = b": still there\n\n"  # a remark, by the format of event streams
_ENCODER = msgspec.json.Encoder()
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx keeps them until there are many
]


class Gone(Exception):
    """The client has hung up before its request was complete."""


class Call:
    """A request and the way to answer it. `told` is what the log will say of it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, config: ServerConfig) -> None:
        self.config = config
        self.id = f"req_{secrets.token_hex(12)}"
        self.headers = Headers(scope=scope)
        self.path: dict[str, Any] = scope.get("path_params", {})
        self.key: str = scope.get("qtransformers.key", "")
        self.client = (
            self.key or (scope.get("client") or ("",))[0]
        )  # whom turns are given to: its key, else its address
        self.size = 0  # bytes of the body
        self.started = time.perf_counter()
        self.status = 0  # of the answer, once it has begun
        self.adapter: str | None = None  # that the name of the model means
        self.told: dict[str, Any] = scope.setdefault("qtransformers.told", {})
        self.told["request"] = self.id
        self._receive, self._send = receive, send
        self._last = 0.0  # when something was sent
        self._sending = False
        self.stalled = False  # the client reads nothing

    async def body(self) -> bytes:
        """All of the body; HTTPError for one that is too large or too slow, Gone for one that ends amid."""
        limit, length = self.config.max_body, self.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > limit:
            raise _too_large(limit, f"{int(length[:20]):,} bytes")
        try:
            return await asyncio.wait_for(self._body(limit), self.config.body_timeout)
        except asyncio.TimeoutError:
            raise HTTPError(
                408, f"the body did not arrive within {self.config.body_timeout:g} seconds. Send it faster.", "timeout"
            ) from None

    async def _body(self, limit: int) -> bytes:
        parts: list[bytes] = []
        try:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                parts.append(message.get("body", b""))
                self.size += len(parts[-1])
                if self.size > limit:
                    raise _too_large(limit, "more")
                if not message.get("more_body"):
                    return b"".join(parts)
        finally:
            parts.clear()  # or an error keeps them, by this frame, until cycles are collected

    async def gone(self) -> None:
        """Until the client has hung up; to be awaited once the body has been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer with a value as JSON."""
        await self.data(_ENCODER.encode(value), b"application/json", status, headers)

    async def data(self, data: bytes, kind: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer with bytes."""
        fields = [(b"content-type", kind), (b"content-length", str(len(data)).encode())]
        await self._start(status, fields, headers or {})
        await self._send({"type": "http.response.body", "body": data})

    async def events(self, events: AsyncIterator[bytes], ping: bytes = PING) -> None:
        """Answer with events as they come, and a `ping` where for long none comes."""
        await self._start(200, _EVENTS, {})
        self._last = time.perf_counter()
        task = asyncio.current_task()
        beats = asyncio.create_task(self._beat(ping, task))
        try:
            async for event in events:
                await self._part(event)
        except asyncio.CancelledError:
            if self.stalled:
                raise HTTPError(408, f"nothing was read for {self.config.stall:g} seconds.", "stalled") from None
            raise
        finally:
            beats.cancel()
            with suppress(asyncio.CancelledError):
                await beats
        await self._send({"type": "http.response.body", "body": b""})

    async def last(self, data: bytes) -> None:
        """End a stream that has begun."""
        await self._send({"type": "http.response.body", "body": data})

    async def _start(self, status: int, fields: Iterable[tuple[bytes, bytes]], headers: dict[str, str]) -> None:
        self.status = status
        more = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        fields = [*fields, *more, (b"x-request-id", self.id.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": fields})

    async def _part(self, data: bytes) -> None:
        self._last = time.perf_counter()
        self._sending = True
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._sending = False

    async def _beat(self, ping: bytes, task: asyncio.Task[Any] | None) -> None:
        """Fill silence; end `task`, which sends, where it has long waited for the client to read."""
        while True:
            silent = time.perf_counter() - self._last
            patience = self.config.stall if self._sending else self.config.ping
            if silent < patience:
                await asyncio.sleep(min(patience - silent, self.config.ping))
            elif self._sending:
                self.stalled = True
                if task is not None:
                    task.cancel()
                return
            else:
                await self._part(ping)


def event(value: Any, name: str = "") -> bytes:
    """A value as an event of a stream."""
    head = f"event: {name}\n".encode() if name else b""
    return b"".join((head, b"data: ", _ENCODER.encode(value), b"\n\n"))


def _too_large(limit: int, found: str) -> HTTPError:
    return HTTPError(413, f"the body has {found}; expected at most {limit:,} bytes (--max-body).", "body_too_large")
