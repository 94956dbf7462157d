"""Processes that serve the same models, each with an engine of its own; weights are one copy, that of the page cache.

A process answers over a socket file: a frame with the request's head, one with its body, then a frame for each part of the
answer as soon as it is there. Closing the connection ends the answer.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
from starlette.types import Message

from qtransformers.errors import QTransformersError
from qtransformers.native import lib
from qtransformers.serve.config import ServerConfig
from qtransformers.serve.models import ModelSpec
from qtransformers.serve.painters import PainterSpec

LOG = logging.getLogger("qtransformers.serve")
State = Literal["loading", "ready", "gone"]
SIZE = struct.Struct("<I")
LOOK_SECONDS = 0.2  # between two looks at whether a process is there
PING_SECONDS = 5.0  # between two questions whether it answers
SILENT_SECONDS = 60.0  # of no answer, after which a process is ended: it hangs
SOONEST, LATEST = 0.5, 30.0  # seconds until a process that ended is started anew, the longer the oftener
LONG_ENOUGH = 60.0  # seconds that a process lived, after which its end counts as the first


class Lost(Exception):
    """A process that ended before its answer did."""


def frame(value: Any) -> bytes:
    """A value with its size in front."""
    data = msgspec.msgpack.encode(value)
    return SIZE.pack(len(data)) + data


async def read_frame(reader: asyncio.StreamReader) -> Any:
    """The next value; Lost where the other side has ended."""
    try:
        (n,) = SIZE.unpack(await reader.readexactly(SIZE.size))
        return msgspec.msgpack.decode(await reader.readexactly(n))
    except (asyncio.IncompleteReadError, ConnectionError):
        raise Lost from None


class Replica:
    """One of the processes, as seen from the one that listens; started anew whenever it ends."""

    def __init__(self, number: int, folder: Path, specs: Sequence[ModelSpec], config: ServerConfig, keep_alive: float | None, painters: Sequence[PainterSpec] = ()) -> None:  # fmt: skip
        self.number = number
        self.state: State = "loading"
        self.load = 0  # answers under way
        self.chosen = 0  # when it was last chosen
        self.starts = 0
        self._path = folder / f"{number}"
        self._args = tuple(specs), tuple(painters), config, keep_alive, str(self._path)
        self._process: Any = None
        self._ending = False

    async def supervise(self, give_up: Callable[[Exception], None]) -> None:
        """Keep a process running; `give_up` hears where the first never comes to answer."""
        wait, was_ready = SOONEST, False
        while not self._ending:
            self._path.unlink(missing_ok=True)
            self.state = "loading"
            self._process = multiprocessing.get_context("spawn").Process(target=_main, args=self._args, daemon=True)
            self._process.start()
            self.starts += 1
            started = time.monotonic()
            was_ready |= await self._watch()
            self.state = "gone"
            if self._ending:
                return
            code = self._process.exitcode
            if not was_ready:
                give_up(QTransformersError(f"replica {self.number} ended with code {code} before it could answer; its own message says why."))  # fmt: skip
                return
            wait = SOONEST if time.monotonic() - started > LONG_ENOUGH else min(LATEST, 2 * wait)
            LOG.error("replica %d ended with code %s; it is started again in %.1f s", self.number, code, wait)
            await asyncio.sleep(wait)

    async def end(self) -> None:
        """Let the process end, by force if it does not within a few seconds."""
        self._ending = True
        if self._process is None:
            return
        self._process.terminate()
        for _ in range(50):
            if not self._process.is_alive():
                return
            await asyncio.sleep(0.1)
        self._process.kill()

    @asynccontextmanager
    async def asking(self, head: dict[str, Any], body: bytes) -> AsyncIterator[AsyncIterator[Message]]:
        """The parts of the answer to a request; Lost, also by its iterator, where the process has ended."""
        self.load += 1
        writer = None
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
            writer.write(frame(head) + frame(body))
            yield _messages(reader)
        except OSError:
            raise Lost from None
        finally:
            self.load -= 1
            if writer is not None:
                writer.close()

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of the answer to a GET; Lost."""
        status, parts = 0, []
        async with self.asking(
            {"method": "GET", "path": path, "query": b"", "headers": [], "key": "", "client": ""}, b""
        ) as messages:
            async for message in messages:
                if message["type"] == "http.response.start":
                    status = message["status"]
                elif message["type"] == "http.response.body":
                    parts.append(message.get("body", b""))
        return status, b"".join(parts)

    async def _watch(self) -> bool:
        """Until the process has ended, or is ended for not answering; whether it ever was ready."""
        heard = asked = time.monotonic()
        was_ready = False
        while self._process.is_alive():
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            if self.state == "ready" and now - asked < PING_SECONDS:
                continue
            asked = now
            with suppress(Lost, asyncio.TimeoutError):
                status, _ = await asyncio.wait_for(self.get("/health"), SILENT_SECONDS / 4)
                heard = time.monotonic()
                self.state = "ready" if status == 200 else "loading"
                was_ready |= status == 200
            if self.state == "ready" and time.monotonic() - heard > SILENT_SECONDS:
                LOG.error("replica %d has not answered for %.0f seconds and is ended", self.number, SILENT_SECONDS)
                self._process.kill()
        return was_ready


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[Message]:
    while True:
        message = await read_frame(reader)
        yield message
        if message["type"] == "told":
            return


def _main(
    specs: tuple[ModelSpec, ...],
    painters: tuple[PainterSpec, ...],
    config: ServerConfig,
    keep_alive: float | None,
    path: str,
) -> None:
    """A process: serve at a socket file until SIGTERM, or until the one that listens has ended."""
    from qtransformers.serve.run import log_to_stderr

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that listens
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    log_to_stderr()
    lib.watch_mappings()
    code = asyncio.run(_serve(specs, painters, config, keep_alive, path))
    raise SystemExit(code)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


async def _serve(
    specs: tuple[ModelSpec, ...],
    painters: tuple[PainterSpec, ...],
    config: ServerConfig,
    keep_alive: float | None,
    path: str,
) -> int:
    from qtransformers.serve.app import inner_of
    from qtransformers.serve.models import Models
    from qtransformers.serve.painters import Painters
    from qtransformers.serve.server import Server

    server, over = Server(Models(specs, keep_alive), config, Painters(painters, keep_alive)), asyncio.Event()
    errors: list[Exception] = []

    def give_up(error: Exception) -> None:
        errors.append(error)
        over.set()

    server.give_up = give_up
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    inner = inner_of(server)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(Lost, ConnectionError):
            await _answer(inner, reader, writer)
        writer.close()

    async with inner.router.lifespan_context(inner), await asyncio.start_unix_server(answer, path):
        await over.wait()
        server.draining = True
    return getattr(errors[0], "exit_code", 1) if errors else 0


async def _answer(app: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Of one request."""
    head = await read_frame(reader)
    bodies: list[Message] = [{"type": "http.request", "body": await read_frame(reader)}]
    told: dict[str, Any] = {}

    async def receive() -> Message:
        if bodies:
            return bodies.pop()
        with suppress(ConnectionError):
            await reader.read(1)  # nothing comes any more but the end
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        writer.write(frame(message))
        with suppress(ConnectionError):
            await writer.drain()

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": head["method"], "scheme": "http",
        "path": head["path"], "raw_path": head["path"].encode(), "root_path": "", "query_string": head["query"],
        "headers": [tuple(pair) for pair in head["headers"]], "client": (head["client"], 0), "server": None,
        "qtransformers.key": head["key"], "qtransformers.told": told,
    }  # fmt: skip
    await app(scope, receive, send)
    writer.write(frame({"type": "told", "told": told}))
    await writer.drain()
