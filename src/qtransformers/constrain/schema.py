"""JSON Schemas on their way to a grammar: read, bounded, and the place of what is wrong with one."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

from qtransformers.checks import shown
from qtransformers.errors import ConstraintError

MAX_DEPTH = 100  # of values within values
MAX_VALUES = 200_000
MAX_ALTERNATIVES = (
    1000  # objects and lists in an enum, schemas in an anyOf; more than 2,000 are refused while a text is made
)
MAX_SQUARES = (
    4_000_000  # properties of each object, and alternatives, squared and summed: as the time of compiling grows
)
MAX_MULTIPLE = 100_000  # an automaton has as many states as the smallest common multiple of all `multipleOf`
MAX_REFERENCES = 5000  # different ones, and values within values of all they lead to: llguidance recurses along them
MAX_REFERENCED_DEPTH = 20_000
MAX_PATTERN = 16_000  # characters
MAX_SEARCH = 0.5  # seconds, for the place of an error

ONE = ("items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
MANY = ("prefixItems", "anyOf", "oneOf", "allOf", "items")
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
OTHER = (
    *("$ref", "$id", "id", "$schema", "$anchor", "$comment", "$vocabulary", "$dynamicRef", "$dynamicAnchor", "$recursiveRef"),
    *("$recursiveAnchor", "const", "enum", "type", "minItems", "maxItems", "uniqueItems", "minContains", "maxContains"),
    *("required", "minProperties", "maxProperties", "dependentRequired", "dependencies", "minLength", "maxLength", "pattern"),
    *("format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "title", "description", "default"),
    *("readOnly", "writeOnly", "examples", "deprecated", "contentMediaType", "contentEncoding", "contentSchema", "x-guidance"),
)  # fmt: skip
SQUARED = ("properties", "patternProperties", "anyOf", "oneOf", "allOf")
ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly")
)
KNOWN = frozenset((*ONE, *MANY, *NAMED, *OTHER))

Schema = Mapping[str, Any] | bool


def read(source: str | Schema) -> dict[str, Any] | bool:
    """A schema from JSON text or as Python values; ConstraintError where it is none, or beyond the limits above."""
    if isinstance(source, str):
        try:
            schema = json.loads(source, parse_constant=_no_number)
        except RecursionError:
            raise ConstraintError(f"json_schema: values are nested deeper than {MAX_DEPTH}.") from None
        except ValueError as e:  # a JSONDecodeError has line and column; integers of 4,301 digits have none
            raise ConstraintError(f"json_schema is no JSON: {e}.") from None
    else:
        schema = source
    if not isinstance(schema, (Mapping, bool)):
        raise ConstraintError(f"json_schema is {shown(schema)}; expected a JSON object, true or false.")
    _check_size(schema)
    _check_references(schema)
    squares = 0
    for place, part in walk(schema):
        _check(place, part)
        squares += (
            sum(len(part[key]) ** 2 for key in SQUARED if key in part and hasattr(part[key], "__len__"))
            if isinstance(part, Mapping)
            else 0
        )
        if squares > MAX_SQUARES:
            raise ConstraintError(
                f"json_schema {place or '/'}: the objects and alternatives up to here are too many to compile; at most {math.isqrt(MAX_SQUARES):,} properties in all in one object, or fewer in several."
            )
    return schema if isinstance(schema, bool) else dict(schema)


def lean(schema: Any) -> Any:
    """A schema that `read` gave, without what says nothing of values."""
    if not isinstance(schema, Mapping):
        return schema
    found = {}
    for key, value in schema.items():
        if key in ANNOTATIONS:
            continue
        if key in NAMED and isinstance(value, Mapping):
            value = {name: lean(part) for name, part in value.items()}
        elif key in MANY and isinstance(value, list):
            value = [lean(part) for part in value]
        elif key in ONE:
            value = lean(value)
        found[key] = value
    return found


def unknown_keywords(schema: Schema) -> list[str]:
    """A line for every keyword that is none of JSON Schema's, and so constrains nothing."""
    return [
        f"json_schema {place or '/'}: {shown(key)} is no keyword of JSON Schema and constrains nothing"
        for place, part in walk(schema)
        if isinstance(part, Mapping)
        for key in part
        if key not in KNOWN and not str(key).startswith("x-")
    ]


def place_of(schema: Schema, message: str, problem: Callable[[Schema], str]) -> str:
    """The JSON pointer of the innermost schema for which `problem` says `message`."""
    shared = {k: v for k, v in schema.items() if k in ("$defs", "definitions")} if isinstance(schema, Mapping) else {}
    end = time.monotonic() + MAX_SEARCH
    place = ""
    while True:
        for step, part in _children(schema):
            if time.monotonic() > end:
                return place or "/"
            if isinstance(part, Mapping) and problem({**shared, **part}) == message:
                place, schema = place + step, part
                break
        else:
            return place or "/"


def walk(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every schema within a schema, itself first, and where it stands."""
    todo = [("", schema)]
    while todo:
        place, part = todo.pop()
        yield place, part
        todo += [(place + step, child) for step, child in _children(part)]


def _children(schema: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        if key in ONE and isinstance(value, (Mapping, bool)):
            yield f"/{key}", value
        elif key in MANY and isinstance(value, (list, tuple)):
            yield from ((f"/{key}/{i}", part) for i, part in enumerate(value))
        elif key in NAMED and isinstance(value, Mapping):
            yield from ((f"/{key}/{_escaped(name)}", part) for name, part in value.items())


def _escaped(name: Any) -> str:
    return str(name).replace("~", "~0").replace("/", "~1")


def _check_size(schema: Any) -> None:
    """Bounds over all values, wherever they stand: references may lead anywhere."""
    todo = [("", schema, 0)]
    n_values = 0
    multiple = Fraction(1)
    while todo:
        place, value, depth = todo.pop()
        n_values += 1
        if depth > MAX_DEPTH:
            raise ConstraintError(f"json_schema {place[:200]}: values are nested deeper than {MAX_DEPTH}.")
        if n_values > MAX_VALUES:
            raise ConstraintError(f"json_schema has more than {MAX_VALUES:,} values.")
        if isinstance(value, Mapping):
            todo += [(f"{place}/{_escaped(key)}", part, depth + 1) for key, part in value.items()]
            step = value.get("multipleOf")
            if isinstance(step, (int, float)) and not isinstance(step, bool) and math.isfinite(step) and step > 0:
                step = Fraction(str(step))
                multiple = Fraction(math.lcm(multiple.numerator, step.numerator), math.gcd(multiple.denominator, step.denominator))  # fmt: skip
                if multiple.numerator > MAX_MULTIPLE or step.denominator > 10**15:
                    raise ConstraintError(
                        f"json_schema {place}/multipleOf: {shown(value['multipleOf'])}: the smallest common multiple of all `multipleOf` exceeds {MAX_MULTIPLE:,}."
                    )
        elif isinstance(value, (list, tuple)):
            todo += [(f"{place}/{i}", part, depth + 1) for i, part in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConstraintError(f"json_schema {place}: {value} is no number of JSON.")


def _check_references(schema: Any) -> None:
    """Bound how deep references may lead one into the other, wherever they stand."""
    todo, targets = [schema], set()
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping):
            todo += value.values()
            if isinstance(value.get("$ref"), str):
                targets.add(value["$ref"])
        elif isinstance(value, (list, tuple)):
            todo += value
    if len(targets) > MAX_REFERENCES:
        raise ConstraintError(
            f"json_schema has {len(targets):,} different $ref; at most {MAX_REFERENCES:,} are possible."
        )
    depths: dict[int, int] = {}
    if sum(_depth(_resolved(schema, target), depths) for target in targets) > MAX_REFERENCED_DEPTH:
        raise ConstraintError("json_schema: its $ref lead too deep one into the other.")


def _resolved(schema: Any, target: str) -> Any:
    """What a reference within the schema leads to; None where it leads elsewhere."""
    for step in unquote(target).removeprefix("#").split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, Mapping):
            schema = schema.get(step)
        elif isinstance(schema, (list, tuple)):
            schema = schema[int(step)] if step.isascii() and step.isdigit() and int(step) < len(schema) else None
    return schema


def _depth(value: Any, known: dict[int, int]) -> int:
    """How deep values lie within `value`; one that is not there counts as deep as any."""
    if not isinstance(value, (Mapping, list, tuple)):
        return MAX_DEPTH if value is None else 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, Mapping) else value
        known[id(value)] = 1 + max((_depth(part, known) for part in parts if part is not None), default=0)
    return known[id(value)]


def _check(place: str, part: Any) -> None:
    where = f"json_schema {place or '/'}"
    if not isinstance(part, (Mapping, bool)):
        raise ConstraintError(f"{where}: {shown(part)} is no schema; expected a JSON object, true or false.")
    if isinstance(part, bool):
        return
    for key in part:
        if not isinstance(key, str):
            raise ConstraintError(f"{where}: the key {shown(key)} is no text.")
    for pattern in (part.get("pattern"), *(part.get("patternProperties") or ())):
        if isinstance(pattern, str) and len(pattern) > MAX_PATTERN:
            raise ConstraintError(f"{where}: a pattern of {len(pattern):,} characters; at most {MAX_PATTERN:,} are possible.")  # fmt: skip
    for key in (*MANY, "enum"):
        values = part.get(key)
        if isinstance(values, list) and key != "prefixItems":
            n = sum(isinstance(v, (dict, list)) for v in values)
            if n > MAX_ALTERNATIVES:
                raise ConstraintError(f"json_schema {place}/{key} has {n:,} alternatives; at most {MAX_ALTERNATIVES:,} are possible.")  # fmt: skip


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")
