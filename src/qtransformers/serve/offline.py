"""Requests of a file, answered without a network: each line goes through the routes of the server, many at a time.

Lines are OpenAI's batch format: custom_id, method, url and body; results id, custom_id, response and error.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec
from starlette.types import ASGIApp, Message

from qtransformers.checks import shown
from qtransformers.errors import ConfigError, ModelNotFoundError, QTransformersError
from qtransformers.serve.app import app_of
from qtransformers.serve.routes import ROWS
from qtransformers.serve.server import Server

URLS = tuple(row.path for row in ROWS if row.method == "POST")
MAX_LINE = 64 << 20  # bytes
MAX_ID = 512  # characters
SYNC_SECONDS = 1.0  # after which what was written is on the disk, whatever happens to the machine
HOPELESS = 20  # failures of the server's own, one after the other, after which the rest is left for another time


class Asked(msgspec.Struct):
    """A line of requests."""

    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


class _Model(msgspec.Struct):
    model: str | None = None
    stream: Any = None


class _AskedModel(msgspec.Struct):
    body: _Model


class _Error(msgspec.Struct):
    line: int | None = None


class _Result(msgspec.Struct):
    custom_id: str | None
    response: msgspec.Raw
    error: _Error | None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Used(msgspec.Struct):
    usage: _Usage | None = None


class Refused(Exception):
    """A line that is not asked: a code, and what is wrong."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Tally:
    """What became of the lines."""

    total: int = 0
    answered: int = 0
    refused: int = 0  # by the routes, with a status of 400 or more
    unreadable: int = 0  # never asked
    skipped: int = 0  # answered by a run before
    tokens: int = 0  # of answers
    failures: int = 0  # of the server's own, since the last answer

    @property
    def done(self) -> int:
        """Lines that have their result."""
        return self.answered + self.refused + self.unreadable + self.skipped


@dataclass
class Results:
    """The file of results: what earlier runs left in it counts, what they left unfinished is taken out."""

    path: Path
    ids: set[str] = field(default_factory=set)
    lines: set[int] = field(default_factory=set)  # that could not be read
    _file: IO[bytes] | None = None
    _synced: float = 0.0

    def __enter__(self) -> Results:
        try:
            self._file = open(self.path, "a+b", buffering=0)
        except OSError as e:
            raise ConfigError(f"{self.path}: results cannot be written there ({e.strerror}). Choose another file with --output.") from None  # fmt: skip
        _lock(self._file, self.path)
        self._file.seek(0)
        kept = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break  # the run was killed amid it
            try:
                found = msgspec.json.decode(line, type=_Result)
            except msgspec.MsgspecError as e:
                raise ConfigError(f"{self.path}, line {number}: {str(e)[:200]}. This is no file of results; give --output another.") from None  # fmt: skip
            if found.error is not None and found.error.line is not None:
                self.lines.add(found.error.line)
            elif found.custom_id is not None:
                self.ids.add(found.custom_id)
            kept += len(line)
        self._file.truncate(kept)
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()

    def write(self, custom_id: str | None, response: Any, error: Any) -> None:
        """Append one; after a kill it is there whole, or its beginning goes with the next run."""
        assert self._file is not None  # the block is open
        value = {
            "id": f"batch_req_{secrets.token_hex(12)}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }
        data = memoryview(msgspec.json.encode(value) + b"\n")
        while data:
            data = data[self._file.write(data) :]
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()


def models_of(path: Path) -> tuple[int, list[str]]:
    """How many lines a file of requests has, and the models they name, in their order; errors as of `open`."""
    names: dict[str, None] = {}
    n = 0
    with opened(path) as file:
        for _, line in lines_of(file):
            n += 1
            with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                name = msgspec.json.decode(line, type=_AskedModel).body.model
                if name:
                    names[name] = None
    return n, list(names)


def opened(path: Path) -> IO[bytes]:
    """The file of requests; ModelNotFoundError."""
    try:
        return open(path, "rb")
    except OSError as e:
        raise ModelNotFoundError(f"{path}: requests cannot be read from there ({e.strerror}). Give a file of JSON lines.") from None  # fmt: skip


def lines_of(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Numbers and bytes of the lines that are not blank; of one beyond MAX_LINE only so much and one byte."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
        if line.strip():
            yield number, line


async def answer_all(
    server: Server,
    lines: Iterable[tuple[int, bytes]],
    results: Results,
    at_once: int,
    tally: Tally,
    stop: asyncio.Event,
) -> None:
    """Ask `at_once` lines at a time and write each answer when it is there, until all are done or `stop` is set.

    What is under way then is given up and left for the next run. What fails by no fault of its own is asked a second time
    at the end; QTransformersError where everything does.
    """
    again: list[Asked] = []
    async with _started(server) as app:
        todo = _todo(lines, results, tally)
        await _all(at_once, lambda: _work(app, todo, results, tally, again), stop)
        last = iter(again)
        await _all(at_once, lambda: _work(app, last, results, tally, None), stop)


async def _all(n: int, work: Callable[[], Coroutine[Any, Any, None]], stop: asyncio.Event) -> None:
    """`n` times the same work side by side, until all is done, or one fails, or `stop` is set."""
    tasks: set[asyncio.Task[Any]] = {asyncio.create_task(work()) for _ in range(n)}
    stopping: asyncio.Task[Any] = asyncio.create_task(stop.wait())
    try:
        waiting = tasks | {stopping}
        while waiting & tasks and not stop.is_set():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done & tasks:
                task.result()
    finally:
        for task in (*tasks, stopping):
            task.cancel()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)


def stop_on_signals(stop: asyncio.Event) -> None:
    """Let Ctrl-C and SIGTERM set it, where the system can tell a loop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # Windows, where Ctrl-C is raised
            asyncio.get_running_loop().add_signal_handler(number, stop.set)


@asynccontextmanager
async def _started(server: Server) -> AsyncIterator[ASGIApp]:
    """The server's app between its start and its end."""
    await server.models.load(server.models.entries[0])
    try:
        yield app_of(server)
    finally:
        await server.close()


def _todo(lines: Iterable[tuple[int, bytes]], results: Results, tally: Tally) -> Iterator[Asked]:
    """What is to be asked; results of lines that cannot be are written on the way."""
    seen: dict[str, int] = {}
    for number, line in lines:
        if number in results.lines:
            tally.skipped += 1
            continue
        try:
            asked = _asked(line, number, seen)
        except Refused as e:
            results.write(_id_of(line), None, {"code": e.code, "message": f"line {number}: {e}", "line": number})
            tally.unreadable += 1
            continue
        if asked.custom_id in results.ids:
            tally.skipped += 1
        else:
            yield asked


def _asked(line: bytes, number: int, seen: dict[str, int]) -> Asked:
    """A line as it may be asked; Refused says why it may not."""
    if len(line) > MAX_LINE:
        raise Refused("line_too_large", f"it has more than {MAX_LINE:,} bytes. Send less in one request.")
    try:
        found = msgspec.json.decode(line, type=Asked)
        inside = msgspec.json.decode(found.body, type=_Model)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise Refused("invalid_request", f"{str(e)[:200]}. Expected an object with custom_id, method, url and body.") from None  # fmt: skip
    if not 0 < len(found.custom_id) <= MAX_ID:
        raise Refused(
            "invalid_custom_id", f"custom_id has {len(found.custom_id):,} characters; expected 1 to {MAX_ID}."
        )
    if (first := seen.setdefault(found.custom_id, number)) != number:
        raise Refused("duplicate_custom_id", f"custom_id {shown(found.custom_id)} is that of line {first}, too. Each needs its own.")  # fmt: skip
    if found.method != "POST":
        raise Refused("invalid_method", f"method {shown(found.method)}; expected POST.")
    if found.url not in URLS:
        raise Refused("invalid_url", f"url {shown(found.url)}; expected one of {', '.join(URLS)}.")
    if inside.stream:
        raise Refused("invalid_request", "stream: answers of a batch come whole. Leave it out.")
    return found


def _id_of(line: bytes) -> str | None:
    class Named(msgspec.Struct):
        custom_id: str

    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(line, type=Named).custom_id[:MAX_ID]
    return None


async def _work(app: ASGIApp, todo: Iterator[Asked], results: Results, tally: Tally, again: list[Asked] | None) -> None:
    for asked in todo:
        status, request_id, body = await _ask(app, asked.url, bytes(asked.body))
        if status >= 500:
            tally.failures += 1
            if tally.failures >= HOPELESS:
                said = body[:500].decode("utf-8", "replace")
                raise QTransformersError(f"the last {HOPELESS} requests failed, so the rest is left for another run: {said}")  # fmt: skip
            if again is not None:
                again.append(asked)
                continue
        else:
            tally.failures = 0
        response = {"status_code": status, "request_id": request_id, "body": msgspec.Raw(body)}
        results.write(asked.custom_id, response, None)
        if status >= 400:
            tally.refused += 1
            continue
        tally.answered += 1
        used = msgspec.json.decode(body, type=_Used).usage
        tally.tokens += used.completion_tokens if used else 0


async def _ask(app: ASGIApp, url: str, body: bytes) -> tuple[int, str, bytes]:
    """Status, id and body of the answer to a request."""
    parts: list[bytes] = []
    head: dict[str, Any] = {}
    bodies: list[Message] = [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        if bodies:
            return bodies.pop()
        await asyncio.Event().wait()  # nobody hangs up
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            head.update(message)
        else:
            parts.append(message.get("body", b""))

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": url,
        "raw_path": url.encode(), "root_path": "", "query_string": b"", "headers": headers, "client": None, "server": None,
    }  # fmt: skip
    await app(scope, receive, send)
    request_id: bytes = dict(head["headers"]).get(b"x-request-id", b"")
    return head["status"], request_id.decode(), b"".join(parts)


def _lock(file: IO[bytes], path: Path) -> None:
    """ConfigError where another process writes to the file."""
    try:
        import fcntl
    except ImportError:  # Windows lets two write at once
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"{path}: another batch writes its results there. Wait for it, or give --output another file.") from None  # fmt: skip
