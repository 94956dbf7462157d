"""Who may ask: names in `Host`, other sites' pages, keys. What is sent back to browsers with it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qtransformers.checks import shown
from qtransformers.serve.config import LOOPBACK, ServerConfig, is_loopback
from qtransformers.serve.errors import HTTPError, anthropic_shape, openai_shape

SAFE = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
ALLOWED_HEADERS = b"authorization, content-type, x-api-key, anthropic-version, anthropic-beta, x-request-id"
BODIES = 32  # of the largest size that may be held at a time
SMALL = 1 << 16  # bytes of a body that do not count, so that short requests pass whatever others send
_HOST = re.compile(r"(\[[^\[\]@/]+\]|[\w.-]+?)\.?(?::[0-9]{0,5})?", re.ASCII)
ANYBODY = 24 * 3600  # seconds that a browser may remember what is allowed


class Guard:
    """Lets requests through to `app` that may come in; the others get an error. `public` are paths that need no key."""

    def __init__(
        self, app: ASGIApp, config: ServerConfig, public: Collection[str], log: Callable[[dict[str, Any]], None]
    ) -> None:
        self._app, self._config, self._public, self._log = app, config, public, log
        own = (config.host if ":" not in config.host else f"[{config.host}]").lower()
        # With keys, a name that was bent to this address gains nothing; without, only loopback's own names are safe.
        self._any_host = "*" in config.hosts or (
            bool(config.keys) and not config.hosts and not is_loopback(config.host)
        )
        self._held = 0  # bytes of bodies
        self._hosts = {*LOOPBACK, own, *(name.lower() for name in config.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        told: dict[str, Any] = {"method": scope["method"], "path": scope["path"]}
        scope["qtransformers.told"] = told
        started = time.perf_counter()
        cors = self._cors(origin, headers)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                told["status"] = message["status"]
                message = {**message, "headers": [*message["headers"], *SAFE, *cors]}
            await send(message)

        size = held = 0

        async def read() -> Message:
            nonlocal size, held
            message = await receive()
            size += len(message.get("body", b""))
            more = max(0, size - SMALL) - held
            most = BODIES * self._config.max_body
            if self._held + more > most:
                raise HTTPError(503, f"the bodies of all requests under way have {most:,} bytes, as many as the server holds. Ask again.", "overloaded", retry=1)  # fmt: skip
            self._held, held = self._held + more, held + more
            return message

        try:
            refused = self._refusal(scope, headers, origin)
            if refused is not None:
                await _refuse(answer, refused, scope["path"])
            elif scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await answer({"type": "http.response.start", "status": 204, "headers": []})
                await answer({"type": "http.response.body"})
            else:
                await self._app(scope, read, answer)
        finally:
            self._held -= held
            told["seconds"] = round(time.perf_counter() - started, 4)
            self._log(told)

    def _refusal(self, scope: Scope, headers: Headers, origin: str | None) -> HTTPError | None:
        """Why a request may not come in."""
        host = headers.get("host", "")
        if len(headers.getlist("host")) > 1:
            return HTTPError(400, "the request has several Host headers; expected one.", "host")
        if not self._any_host and _name(host) not in self._hosts:
            return HTTPError(403, f"Host is {shown(host)}; expected this server's address. Names that lead to it are allowed by --allow-host.", "host")  # fmt: skip
        if origin is not None and not self._may(origin, host):
            return HTTPError(403, f"Origin is {shown(origin)}: pages of other sites may not ask, unless --allow-origin names theirs.", "origin")  # fmt: skip
        preflight = scope["method"] == "OPTIONS" and origin is not None
        if self._config.keys and scope["path"] not in self._public and not preflight:
            scope["qtransformers.key"] = name = self._config.key_of(_key(headers))
            if name is None:
                found = "an unknown key" if _key(headers) else "no key"
                return HTTPError(401, f"the request has {found}; expected one of this server's: Authorization: Bearer KEY, or x-api-key: KEY.", "invalid_api_key")  # fmt: skip
            scope["qtransformers.told"]["key"] = name
        return None

    def _may(self, origin: str, host: str) -> bool:
        return bool({origin, "*"} & set(self._config.origins)) or origin in (f"http://{host}", f"https://{host}")

    def _cors(self, origin: str | None, headers: Headers) -> list[tuple[bytes, bytes]]:
        """What lets the page of another site read the answer, where it may."""
        if origin is None or not {origin, "*"} & set(self._config.origins):
            return []
        found = [
            (b"access-control-allow-origin", origin.encode("latin-1", "replace")),
            (b"vary", b"origin"),
            (b"cross-origin-resource-policy", b"cross-origin"),
        ]
        if "access-control-request-method" in headers:
            found += [
                (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
                (b"access-control-allow-headers", ALLOWED_HEADERS),
                (b"access-control-max-age", str(ANYBODY).encode()),
            ]
        return found


class Rates:
    """How much each key may ask: requests at a time, and a minute (a bucket that refills)."""

    def __init__(self, per_key: int | None, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_key, self._rate, self._clock = per_key, rate, clock
        self._running: dict[str, int] = {}
        self._buckets: dict[str, tuple[float, float]] = {}  # name -> what is in it, and when that was

    def enter(self, key: str) -> None:
        """Count a request in; HTTPError 429 where it is one too many."""
        if self._per_key is not None and self._running.get(key, 0) >= self._per_key:
            raise HTTPError(429, f"{self._per_key} requests of this key are under way, as many as it may have (--per-key). Wait for one.", "concurrency", retry=1)  # fmt: skip
        if self._rate is not None:
            most, now = max(1.0, self._rate), self._clock()
            level, then = self._buckets.get(key, (most, now))
            level = min(most, level + (now - then) * self._rate / 60)
            if level < 1:
                wait = (1 - level) * 60 / self._rate
                raise HTTPError(429, f"this key may ask {self._rate:g} times a minute (--rate). Ask again in {math.ceil(wait)} seconds.", "rate", retry=math.ceil(wait))  # fmt: skip
            self._buckets[key] = (level - 1, now)
        self._running[key] = self._running.get(key, 0) + 1

    def leave(self, key: str) -> None:
        """A request that came in has ended."""
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]


def _key(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else headers.get("x-api-key") or None


def _name(host: str) -> str:
    """A `Host` without its port; none where it is no name."""
    found = _HOST.fullmatch(host.lower())
    return found[1] if found else ""


async def _refuse(send: Send, error: HTTPError, path: str) -> None:
    shape = anthropic_shape if path.startswith("/v1/messages") else openai_shape
    data = msgspec.json.encode(shape(error, ""))
    more = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    if error.status == HTTPStatus.UNAUTHORIZED:
        more.append((b"www-authenticate", b"Bearer"))
    fields = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), *more]
    await send({"type": "http.response.start", "status": error.status, "headers": fields})
    await send({"type": "http.response.body", "body": data})
