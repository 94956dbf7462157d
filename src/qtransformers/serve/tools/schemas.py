"""What the JSON schema of a tool's parameters says about one of them, as far as texts must be told from other values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TEXT = "string"


def properties(schema: Any) -> Mapping[str, Any]:
    """The schemas of an object's properties."""
    found = schema.get("properties") if isinstance(schema, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def types(schema: Any) -> frozenset[str]:
    """The types that a value may have; none where the schema does not say."""
    if not isinstance(schema, Mapping):
        return frozenset()
    given = schema.get("type")
    if isinstance(given, str):
        return frozenset([given])
    if isinstance(given, list):
        return frozenset(t for t in given if isinstance(t, str))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            return frozenset(t for part in schema[key] for t in types(part))
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema[k] for k in ("const",) if k in schema]
    return frozenset([TEXT]) if values and all(isinstance(v, str) for v in values) else frozenset()


def is_text(schema: Any) -> bool:
    """Whether a value can be nothing but a text."""
    return types(schema) == {TEXT}


def as_json(value: str, schema: Any) -> str:
    """The JSON text of a value that stands in an answer without saying whether it is a text."""
    found = types(schema)
    bare = value.strip()
    if TEXT in found and not (bare == "null" and "null" in found):
        return json.dumps(value, ensure_ascii=False)
    if bare in _PYTHON:
        return _PYTHON[bare]
    try:
        json.loads(bare, parse_constant=_no_number)
        return bare
    except (ValueError, RecursionError):
        return json.dumps(value, ensure_ascii=False)


_PYTHON = {"True": "true", "False": "false", "None": "null"}


def _no_number(text: str) -> Any:
    raise ValueError(text)
