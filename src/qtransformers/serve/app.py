"""The ASGI app: the table of its routes, and what each request passes through."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from qtransformers.serve.call import Call, Gone, event
from qtransformers.serve.config import ServerConfig
from qtransformers.serve.errors import HTTPError, anthropic_shape, http_error, openai_shape
from qtransformers.serve.guard import Guard
from qtransformers.serve.models import Models, ModelSpec
from qtransformers.serve.openapi import describer
from qtransformers.serve.routes import ROWS, Row, pages
from qtransformers.serve.server import Server

LOG = logging.getLogger("qtransformers.serve")


def app(specs: Iterable[ModelSpec], config: ServerConfig | None = None, *, keep_alive: float | None = None) -> ASGIApp:
    """An ASGI app that serves models; the first is loaded when it starts. `keep_alive` seconds unused unload one; None: none."""
    server = Server(Models(specs, keep_alive), config or ServerConfig())
    return app_of(server)


def app_of(server: Server) -> ASGIApp:
    """The app of a server."""
    return Guard(inner_of(server), server.config, public_paths(), log)


def public_paths() -> frozenset[str]:
    """Those that need no key."""
    return frozenset(row.path for row in (*ROWS, *pages()) if row.public)


def inner_of(server: Server) -> Starlette:
    """The app of a server, for whom somebody else has let in."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(_first(server)),
            asyncio.create_task(server.models.expire()),
            asyncio.create_task(server.painters.expire()),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.close()

    described = Row("GET", "/openapi.json", describer(ROWS))
    rows = (*ROWS, described, *pages())
    return _App({(row.method, row.path): Endpoint(server, row) for row in rows}, lifespan)


class _App(Starlette):
    """Starlette, but for known paths, which go without its layers: these take their time of every event of a stream."""

    def __init__(self, endpoints: Mapping[tuple[str, str], Endpoint], lifespan: Any) -> None:
        routes = [Route(path, endpoint=endpoint, methods=[method]) for (method, path), endpoint in endpoints.items()]
        super().__init__(routes=routes, lifespan=lifespan, exception_handlers={404: _lost, 405: _lost})
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        endpoint = self._endpoints.get((scope.get("method", ""), scope.get("path", "")))
        await (endpoint or super().__call__)(scope, receive, send)


class Endpoint:
    """Reads a request, lets its handler answer, and ends it when the client has gone or its time is over."""

    def __init__(self, server: Server, row: Row) -> None:
        self._server, self._row = server, row

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        call = Call(scope, receive, send, self._server.config)
        try:
            body = await call.body() if self._row.method == "POST" else b""
            await self._answer(call, body)
        except Gone:
            call.told["ended"] = "disconnected"
        except Exception as e:
            await self._fail(call, e)

    async def _answer(self, call: Call, body: bytes) -> None:
        answer = asyncio.ensure_future(self._row.handler(self._server, call, body))
        gone = asyncio.create_task(call.gone())
        try:
            await asyncio.wait({answer, gone}, timeout=call.config.timeout, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
            elif gone.done():
                call.told["ended"] = "disconnected"
            else:
                raise HTTPError(504, f"the answer was not complete after {call.config.timeout:g} seconds (--timeout). Ask for fewer tokens.", "timeout")  # fmt: skip
        finally:
            for task in (answer, gone):
                if not task.done():
                    task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)

    async def _fail(self, call: Call, error: Exception) -> None:
        found = http_error(error)
        call.told["error"] = found.code
        self._server.models.metrics.refused.labels(str(found.status), found.code or "").inc()
        if found.code == "internal_error":
            LOG.error("request %s: %s", call.id, error, exc_info=error)
        shape = anthropic_shape if self._row.anthropic else openai_shape
        value = shape(found, call.id)
        if not call.status:
            await call.json(value, found.status, found.headers)
        elif not call.stalled:
            await call.last(event(value, "error" if self._row.anthropic else ""))


async def _first(server: Server) -> None:
    """Load the first model; what goes wrong is for /health and the log."""
    first = next(iter((*server.models.names, *server.painters.names)))
    try:
        if server.models.entries:
            await server.models.load(server.models.entries[0])
        else:
            await server.painters.all[0].load()
    except Exception as e:
        LOG.error("%s: %s", first, e)
        server.give_up(e)


async def _lost(request: Any, error: Exception) -> Any:
    from starlette.responses import JSONResponse

    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    message = (
        f"{path} is not served. /openapi.json describes what is."
        if error.status_code == 404
        else f"{path} does not take {request.method[:20]}. /openapi.json describes what it takes."
    )
    shape = anthropic_shape if path.startswith("/v1/messages") else openai_shape
    found = HTTPError(error.status_code, message, "not_found" if error.status_code == 404 else "method_not_allowed")
    return JSONResponse(shape(found, ""), error.status_code, dict(error.headers or {}) | found.headers)


def log(told: dict[str, Any]) -> None:
    """A line of the access log, JSON."""
    LOG.info("%s", json.dumps(told))
