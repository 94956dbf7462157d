"""The page at `/`: files of the package, each with a route of its own, so that no path of a request reaches the disk."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qtransformers.serve.call import Call
    from qtransformers.serve.server import Server

KINDS = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
# Scripts and styles of this server alone, no text that becomes HTML, no other site asked or framed by.
POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'",
    "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'",
))  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",  # kept, and asked for anew by its tag: a new version shows at once
    "vary": "accept-encoding",
}


@dataclass(frozen=True)
class File:
    """A file of the page: its bytes, plain and compressed, what it is, and a tag that changes with it."""

    data: bytes
    packed: bytes
    kind: bytes
    tag: str

    async def __call__(self, server: Server, call: Call, body: bytes) -> None:
        """Answer with the file, or that it is as the browser has it."""
        headers = HEADERS | {"etag": self.tag}
        known = (tag.strip().removeprefix("W/") for tag in call.headers.get("if-none-match", "").split(","))
        if self.tag in known:
            await call.data(b"", self.kind, 304, headers)
        elif "gzip" in call.headers.get("accept-encoding", ""):
            await call.data(self.packed, self.kind, 200, headers | {"content-encoding": "gzip"})
        else:
            await call.data(self.data, self.kind, 200, headers)


def page() -> dict[str, Callable[[Server, Call, bytes], Awaitable[None]]]:
    """URL path -> what answers there: `/` is index.html, `/page/NAME` any file of the page."""
    found: dict[str, Callable[[Server, Call, bytes], Awaitable[None]]] = {}
    for entry in files("qtransformers.serve").joinpath("page").iterdir():
        kind = KINDS.get(entry.name[entry.name.rfind(".") :])
        if kind is not None:
            found["/" if entry.name == "index.html" else f"/page/{entry.name}"] = _file(entry.read_bytes(), kind)
    return found


def _file(data: bytes, kind: bytes) -> File:
    return File(data, gzip.compress(data, mtime=0), kind, f'"{hashlib.sha256(data).hexdigest()[:24]}"')
