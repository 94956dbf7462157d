"""The API described (OpenAPI 3.1), from the types by which bodies are decoded and the ranges of sampling."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from qtransformers import __version__
from qtransformers.sampling.settings import RANGES
from qtransformers.serve.errors import KINDS

if TYPE_CHECKING:
    from qtransformers.serve.call import Call
    from qtransformers.serve.routes import Row
    from qtransformers.serve.server import Server

Json = dict[str, Any]
ERROR: Json = {"type": "object", "required": ["error"], "properties": {"error": {"type": "object", "required": ["message", "type"]}}}  # fmt: skip


def describe(rows: Iterable[Row]) -> Json:
    """The description of these routes."""
    rows = [row for row in rows if row.described]
    bodies = [row.body for row in rows if row.body is not None]
    _, schemas = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    for schema in schemas.values():
        for name, field in schema.get("properties", {}).items():
            _bound(name, field)
    paths: dict[str, Json] = {}
    for row in rows:
        path = re.sub(r"\{(\w+):path\}", r"{\1}", row.path)
        paths.setdefault(path, {})[row.method.lower()] = _operation(row, path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "qtransformers", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def describer(rows: Iterable[Row]) -> Callable[[Server, Call, bytes], Awaitable[None]]:
    """The handler that tells the description."""
    found = describe(rows)

    async def openapi(server: Server, call: Call, body: bytes) -> None:
        """This description."""
        await call.json(found)

    return openapi


def _operation(row: Row, path: str) -> Json:
    content = {"application/json": {"schema": {"type": "object"}}}
    if row.path == "/metrics":
        content = {"text/plain": {"schema": {"type": "string"}}}
    elif row.body is not None and "stream" in getattr(row.body, "__struct_fields__", ()):
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"description": "what was found and expected", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}  # fmt: skip
    found: Json = {
        "summary": (row.handler.__doc__ or "").strip(),
        "operationId": f"{row.method.lower()}{re.sub(r'[^a-z]+', '_', path)}",
        "responses": {
            "200": {"description": "the answer", "content": content},
            **{str(status): error for status in KINDS},
        },
    }
    if row.path == "/health":
        found["responses"]["503"] = {"description": "not ready", "content": content}
    if names := re.findall(r"\{(\w+)\}", path):
        found["parameters"] = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    if row.body is not None:
        schema = {"$ref": f"#/components/schemas/{row.body.__name__}"}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found


def _bound(name: str, field: Json) -> None:
    """Say what a field of sampling may be at least and at most."""
    if name in RANGES:
        _, least, most = RANGES[name]
        for option in field.get("anyOf", ()):
            if option.get("type") in ("number", "integer"):
                option |= {"minimum": least, "maximum": most}
