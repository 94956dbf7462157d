"""Requests to the replica that has most of their beginning in its cache, else to the one with the least to do."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.serve.about import memory_of
from qtransformers.serve.app import LOG, log, public_paths
from qtransformers.serve.call import Call, Gone, event
from qtransformers.serve.config import ServerConfig
from qtransformers.serve.errors import HTTPError, anthropic_shape, http_error, openai_shape
from qtransformers.serve.guard import Guard, Rates
from qtransformers.serve.models import ModelSpec
from qtransformers.serve.painters import PainterSpec
from qtransformers.serve.replicas import Lost, Replica

BLOCK = 256  # bytes of a request that share a mark
MOST_BLOCKS = 256  # of a request
MOST_MARKS = 1 << 16  # that are remembered
OWN = ("/health", "/metrics", "/v1/models")  # routes that no replica answers alone
STATES = ("ready", "loading", "unloaded", "broken")  # of a model, the best first
PATIENCE = 5.0  # seconds that a replica has to tell how it is
PAINTS = "/v1/images/generations"
SLACK = 2  # answers more than the least busy that a replica may have for what is in its cache


class Beginning(msgspec.Struct):
    """What of a request comes first in its prompt, as it was sent."""

    model: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


def marks_of(key: str, body: bytes) -> list[bytes]:
    """A mark for each block of a request's beginning, which stands for all before it too; other keys have others."""
    try:
        parts = msgspec.json.decode(body, type=Beginning)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []  # the replica says what is wrong
    text = b"\0".join(bytes(getattr(parts, name)) for name in Beginning.__struct_fields__)
    found, mark = [], key.encode()
    for start in range(0, min(len(text) // BLOCK, MOST_BLOCKS) * BLOCK, BLOCK):
        mark = blake2b(mark + text[start : start + BLOCK], digest_size=12).digest()
        found.append(mark)
    return found


class Router:
    """The process that listens: lets requests in, and hands them to replicas."""

    def __init__(self, specs: Sequence[ModelSpec], config: ServerConfig, n: int, keep_alive: float | None = None, painters: Sequence[PainterSpec] = ()) -> None:  # fmt: skip
        if not specs:
            raise ConfigError("replicas: no model of this server writes, and pictures are painted by one process. Leave --replicas out.")  # fmt: skip
        if not hasattr(asyncio, "open_unix_connection"):
            raise UnsupportedError("replicas: this system's Python has no socket files. Start several servers instead.")
        self.config = config
        self.draining = False
        self.give_up: Any = lambda error: None  # called where a replica never comes to answer
        self._rates = Rates(config.per_key, config.rate)
        self._folder = tempfile.TemporaryDirectory(prefix="qtransformers-", ignore_cleanup_errors=True)
        # Keys and rates are looked at here, once for all.
        own = replace(config, keys={}, per_key=None, rate=None, anyone=True)
        self.replicas = [Replica(i, Path(self._folder.name), specs, own, keep_alive, painters) for i in range(n)]
        self._parallel = int(specs[0].options.get("parallel", 8))
        self._known: OrderedDict[bytes, int] = OrderedDict()
        self._turn = 0
        self._paints: Replica | None = None

    def choose(self, marks: Sequence[bytes], without: Iterable[Replica] = ()) -> Replica | None:
        """The replica for a request of these marks; None where none can answer."""
        ready = {r.number: r for r in self.replicas if r.state == "ready" and r not in without}
        if not ready:
            return None
        chosen = least = min(ready.values(), key=lambda r: (r.load, r.chosen))
        for mark in reversed(marks):
            known = ready.get(self._known.get(mark, -1))
            if known is not None:
                # What is computed anew elsewhere costs more than a short wait, but not more than a long one.
                if known.load < self._parallel or known.load <= least.load + SLACK:
                    chosen = known
                break
        for mark in marks:
            self._known[mark] = chosen.number
            self._known.move_to_end(mark)
        while len(self._known) > MOST_MARKS:
            self._known.popitem(last=False)
        self._turn += 1
        chosen.chosen = self._turn
        return chosen

    def choose_painter(self, without: Iterable[Replica] = ()) -> Replica | None:
        """The replica for a picture: the same as before while it lives, for each would load a pipeline of its own."""
        if self._paints is None or self._paints.state != "ready" or self._paints in without:
            self._paints = self.choose((), without)
        return self._paints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        call = Call(scope, receive, send, self.config)
        try:
            if scope["path"] in OWN and scope["method"] not in ("GET", "HEAD"):
                raise HTTPError(405, f"{scope['path']} does not take {scope['method'][:20]}. /openapi.json describes what it takes.", "method_not_allowed")  # fmt: skip
            if scope["path"] == "/health":
                await self._health(call)
            elif scope["path"] == "/metrics":
                texts = await self._all("/metrics")
                await call.data(summed(texts), CONTENT_TYPE_LATEST.encode())
            elif scope["path"] == "/v1/models":
                await self._models(call)
            else:
                await self._hand_on(call, scope, send)
        except Gone:
            call.told["ended"] = "disconnected"
        except Exception as e:
            await self._fail(call, scope, e)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Start the replicas, and end them."""
        await receive()
        tasks = [asyncio.create_task(r.supervise(self.give_up)) for r in self.replicas]
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.gather(*(r.end() for r in self.replicas))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._folder.cleanup()
        await send({"type": "lifespan.shutdown.complete"})

    async def _hand_on(self, call: Call, scope: Scope, send: Send) -> None:
        post = scope["method"] == "POST"
        body = await call.body() if post else b""
        if self.draining:
            raise HTTPError(503, "the server is about to end. Ask another, or again later.", "draining", retry=10)
        headers = [[name, value] for name, value in scope["headers"] if name not in (b"authorization", b"x-api-key")]
        head = {"method": scope["method"], "path": scope["path"], "query": scope["query_string"], "headers": headers, "key": call.key, "client": call.client}  # fmt: skip
        choose = self.choose_painter if scope["path"] == PAINTS else partial(self.choose, marks_of(call.key, body) if post else ())  # fmt: skip
        tried: list[Replica] = []
        if post:
            self._rates.enter(call.key)
        try:
            while (chosen := choose(tried)) is not None:
                call.told["replica"] = chosen.number
                with suppress(Lost):
                    await self._through(chosen, head, body, call, send)
                    return
                tried.append(chosen)  # nothing of its answer was sent
        finally:
            if post:
                self._rates.leave(call.key)
        raise _none_answers()

    async def _through(self, chosen: Replica, head: dict[str, Any], body: bytes, call: Call, send: Send) -> None:
        """Send an answer as it comes. Lost where there is none, and nothing was sent yet."""
        whole = asyncio.Event()  # from here on the client may go: the end of an answer says so, too
        passing = asyncio.ensure_future(_pass(chosen, head, body, call, send, whole))
        gone = asyncio.create_task(call.gone())
        try:
            await asyncio.wait({passing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if whole.is_set():
                await asyncio.wait({passing})  # what is told of the answer comes after it
            if passing.done():
                passing.result()
            else:
                call.told["ended"] = "disconnected"
        finally:
            for task in (passing, gone):
                task.cancel()
            await asyncio.gather(passing, gone, return_exceptions=True)

    async def _health(self, call: Call) -> None:
        states = [r.state for r in self.replicas]
        state = "draining" if self.draining else "ready" if "ready" in states else "loading"
        await call.json({"status": state, "replicas": states}, 200 if state == "ready" else 503)

    async def _models(self, call: Call) -> None:
        texts = await self._all("/v1/models")
        if not texts:
            raise _none_answers()
        await call.json(together([json.loads(text) for text in texts], memory_of()))

    async def _all(self, path: str) -> list[str]:
        found = await asyncio.gather(
            *(asyncio.wait_for(r.get(path), PATIENCE) for r in self.replicas if r.state == "ready"),
            return_exceptions=True,
        )
        return [x[1].decode() for x in found if not isinstance(x, BaseException) and x[0] == 200]

    async def _fail(self, call: Call, scope: Scope, error: Exception) -> None:
        found = http_error(error)
        call.told["error"] = found.code
        if found.code == "internal_error":
            LOG.error("request %s: %s", call.id, error, exc_info=error)
        anthropic = scope["path"].startswith("/v1/messages")
        shape = anthropic_shape if anthropic else openai_shape
        if not call.status:
            await call.json(shape(found, call.id), found.status, found.headers)
        else:
            await call.last(event(shape(found, call.id), "error" if anthropic else ""))


async def _pass(
    chosen: Replica, head: dict[str, Any], body: bytes, call: Call, send: Send, whole: asyncio.Event
) -> None:
    n_parts, complete = 0, False
    held: list[Message] = []  # the head and the first part: until the second nobody has seen a token

    async def let_go() -> None:
        for message in held:
            call.status = call.status or message.get("status", 0)
            await send(message)
        held.clear()

    try:
        async with chosen.asking(head, body) as messages:
            async for message in messages:
                if message["type"] == "told":
                    call.told |= message["told"]
                    break
                if message["type"] == "http.response.start":
                    message["headers"] = [tuple(pair) for pair in message["headers"]]
                held.append(message)
                if message["type"] == "http.response.body":
                    n_parts, complete = n_parts + 1, not message.get("more_body")
                if complete:
                    whole.set()
                if n_parts > 1 or complete:
                    await let_go()
    except Lost:
        if complete:
            return
        if not call.status:
            raise
        raise HTTPError(500, "the process that computed this answer has ended; another takes its place. Ask again.", "replica_lost", retry=1) from None  # fmt: skip


def routed(router: Router) -> ASGIApp:
    """The app of a router, with the same guard as that of a server."""
    return Guard(router, router.config, public_paths(), log)


def _none_answers() -> HTTPError:
    return HTTPError(503, "no replica can answer at the moment. Ask again.", "loading", retry=2)


def together(lists: Sequence[dict[str, Any]], router: dict[str, int | None]) -> dict[str, Any]:
    """/v1/models of several processes as of one: what they do is summed, and the memory that is theirs and the router's; files count once."""
    data = []
    for models in zip(*(said["data"] for said in lists), strict=True):
        best = min(models, key=lambda m: STATES.index(m["state"]))
        more = best["qtransformers"]
        doing = {name: sum(m["qtransformers"][name] for m in models) for name in ("running", "waiting") if name in more}
        data.append({**best, "qtransformers": {**more, **doing}})
    parts = [router, *(said["qtransformers"] for said in lists)]
    files = max(part["mapped_bytes"] or 0 for part in parts)
    own = sum((part["memory_bytes"] or 0) - (part["mapped_bytes"] or 0) for part in parts)
    return {
        **lists[0],
        "data": data,
        "qtransformers": {"memory_bytes": own + files or None, "mapped_bytes": files or None},
    }


_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*(?:\{.*\})?) (\S+)$")


def summed(texts: Sequence[str]) -> bytes:
    """Metrics of several processes as of one: sums; of shares (`_perc`) the mean, of times of creation the first."""
    lines: dict[str, list[float] | None] = {}
    for text in texts:
        for line in text.splitlines():
            found = _SAMPLE.match(line)
            if found is None:
                lines.setdefault(line, None)
            else:
                values = lines.setdefault(found[1], [])
                assert values is not None  # a comment begins with #
                values.append(float(found[2]))
    written = []
    for name, values in lines.items():
        base = name.partition("{")[0]
        if values is None:
            written.append(name)
        else:
            value = min(values) if base.endswith("_created") else sum(values) / (len(texts) if base.endswith("_perc") else 1)  # fmt: skip
            written.append(f"{name} {json.dumps(value)}")
    return "\n".join([*written, ""]).encode()
