"""Grammars as users write them, their bounds, and the same as Lark for llguidance; its messages with the user's places."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from qtransformers.checks import shown, text
from qtransformers.constrain import schema as schemas
from qtransformers.constrain.gbnf_lark import to_lark
from qtransformers.constrain.vocabulary import llguidance
from qtransformers.errors import ConstraintError

if TYPE_CHECKING:
    from llguidance import LLParserLimits

Kind = Literal["json", "json_schema", "regex", "lark", "gbnf"]
Source = str | Mapping[str, Any] | bool | None
JSON_KINDS = ("json", "json_schema")
MAX_CHARACTERS = {"json_schema": 2_000_000, "regex": 16_000, "lark": 50_000, "gbnf": 50_000}
# What a model may write between the parts of a JSON value. Without a bound small models go on with blanks for ever.
WHITESPACE = r" |\r?\n[ \t]{0,40}"
# llguidance would also forbid tokens other than a tokenizer's own where a text is forced; `Matcher.forced` finds those instead.
OPTIONS = '\n%llguidance {"no_forcing": true}\n'
LARK_TOKENS = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/')  # literals, comments, regular expressions


def grammar_kind(source: str) -> Kind:
    """Whether a grammar is GBNF, whose rules are `name ::= ...`, or Lark."""
    return "gbnf" if re.search(r"^[ \t]*[A-Za-z0-9_-]+[ \t]*::=", source, re.MULTILINE) else "lark"


def source_text(kind: Kind, source: Source) -> str:
    """A source as text, within its bounds."""
    if kind == "json":
        if source is not None:
            raise ConstraintError(
                f"grammar: kind 'json' takes no source; found {shown(source)}. For a schema use kind 'json_schema'."
            )
        return '{"type": "object"}'
    if kind == "json_schema" and isinstance(source, (Mapping, bool)):
        try:
            return json.dumps(schemas.read(source))
        except TypeError as e:
            raise ConstraintError(f"json_schema: {e}.") from None
    found = text(kind, source)
    n = len(found) if kind != "lark" or len(found) <= MAX_CHARACTERS[kind] else _length_without_json(found)
    if n > MAX_CHARACTERS[kind]:
        raise ConstraintError(f"{kind} has {n:,} characters; expected at most {MAX_CHARACTERS[kind]:,}.")
    return found


def _length_without_json(source: str) -> int:
    """Characters of a Lark grammar without its JSON schemas, for which their own bounds hold."""
    n, end = len(source), 0
    if n > MAX_CHARACTERS["json_schema"]:
        return n
    for start in re.finditer(r"%json\s+", source):
        if start.end() < end:
            continue  # within a schema
        try:
            schema, end = json.JSONDecoder().raw_decode(source, start.end())
        except (ValueError, RecursionError):
            return n
        schemas.read(schema)
        n -= end - start.end()
    return n


def as_lark(kind: Kind, source: str, schema: schemas.Schema | None) -> str:
    """A source as Lark for llguidance; `schema` is that of a JSON kind."""
    if schema is not None:
        return _json_lark(schema)
    if kind == "regex":
        return f"start: /{llguidance().regex_to_lark(source, '')}/{OPTIONS}"
    if kind == "gbnf":
        return to_lark(source) + OPTIONS
    for match in LARK_TOKENS.finditer(source):
        if len(match[0]) > MAX_CHARACTERS["regex"] and match[0][:2] not in ("//", '"'):
            line = source.count("\n", 0, match.start()) + 1
            raise ConstraintError(
                f"lark, line {line}: a regular expression of {len(match[0]):,} characters; at most {MAX_CHARACTERS['regex']:,} are possible."
            )
    return source + OPTIONS


def json_in_lark(schema: schemas.Schema) -> str:
    """A JSON schema as part of a Lark grammar; ConstraintError where it is none, or beyond the limits."""
    return _json_rule(schemas.lean(schemas.read(schema)))


def _json_lark(schema: schemas.Schema) -> str:
    return f"start: {_json_rule(schema)}{OPTIONS}"


def _json_rule(schema: schemas.Schema) -> str:
    if isinstance(schema, Mapping):
        given = schema.get("x-guidance", {})
        if not isinstance(given, Mapping):
            raise ConstraintError(f"json_schema /x-guidance: {shown(given)}; expected a JSON object.")
        own = {} if {"whitespace_flexible", "whitespace_pattern"} & given.keys() else {"whitespace_pattern": WHITESPACE}
        schema = {**schema, "x-guidance": {**own, **given}}
    return f"%json {json.dumps(schema)}"


def located(kind: Kind, message: str, schema: schemas.Schema | None) -> str:
    """llguidance's message, with the place in the user's source."""
    found = summary(message, kind)
    if schema is None:
        return f"{kind}: {found}."

    def problem(part: schemas.Schema) -> str:
        return summary(llguidance().LLMatcher.validate_grammar(_json_lark(part), None, limits=limits()), kind)

    return f"{kind} {schemas.place_of(schema, found, problem)}: {found}."


def summary(message: str, kind: str = "") -> str:
    """A message of llguidance without the dump of its state, and without places in text that the user did not write."""
    message = re.split(r"\n<|\n\s+\d+ \| ", message, maxsplit=1)[0].strip()
    if kind != "lark":
        made = r"(?:at )?\d+\(\d+\): (?:failed to compile JSON schema: |invalid regex .*? \(in regex\): )?"
        message = re.sub("^" + made, "", message, flags=re.DOTALL)
    if message.startswith("panic:"):
        return "too complex for llguidance (" + message.removeprefix("panic:").strip() + ")"
    return "no token may follow" if message == "NoExtensionBias" else message.rstrip(".")


def limits() -> LLParserLimits:
    """How much a grammar may cost: llguidance's own bounds."""
    return llguidance().LLParserLimits(verbose_errors=False)
