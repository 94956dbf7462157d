"""Random walks through masks, and what is walked through."""

import json

import jsonschema
import numpy as np

SHORT = {"type": "string", "maxLength": 8}
SCHEMAS = {
    "object": {"type": "object", "properties": {"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 120}}, "required": ["name", "age"], "additionalProperties": False},
    "optional": {"type": "object", "properties": {"a": SHORT, "b": {"type": "boolean"}, "c": {"type": "null"}}, "additionalProperties": False},
    "array": {"type": "array", "items": {"enum": ["red", "grün", 3, None, {"x": [1]}]}, "minItems": 1, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [SHORT, {"type": "integer", "minimum": -5, "maximum": 5}], "items": False, "minItems": 2},
    "anyOf": {"anyOf": [SHORT, {"type": "integer", "minimum": 7, "maximum": 1234}, {"type": "object", "properties": {"k": {"const": "ü/\\\"€😀"}}, "required": ["k"], "additionalProperties": False}]},
    "$ref": {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"left": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]}, "v": {"type": "boolean"}}, "required": ["left", "v"], "additionalProperties": False}, "leaf": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}}},
    "pattern": {"type": "string", "pattern": "^[a-zé]{2,5}-[0-9]{3}$"},
    "format": {"type": "string", "format": "date"},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
    "allOf": {"type": "object", "allOf": [{"properties": {"a": SHORT}, "required": ["a"]}, {"properties": {"b": {"type": "boolean"}}, "required": ["b"]}], "maxProperties": 2},
    "number": {"type": "number", "minimum": -1, "maximum": 1, "multipleOf": 0.25},
}  # fmt: skip
REGEXES = (
    r"[0-9]{3}-[a-z]{1,20}\.(com|org)",
    r"(yes|no|maybe)( please)?",
    r"[äöü€😀]{1,6}",
    r"( a|b )*c?",
    r"[0-9]{1,4}(\.[0-9]{1,2})?",
    r"[^a-z]{4}",
    r"(?i)hello world",
    r"[A-Za-z_]{1,9} [à-öЀ-ӿ]{1,9}\n?|\s",
    "",
)


def walk(grammar, tokenizer, rng, *, prefer_end=0.5, limit=400):
    """Tokens drawn at random among those allowed, and the text so far at each step with whether it was complete."""
    matcher, out, seen = grammar.matcher(), [], []
    eos = sorted(tokenizer.eos_ids)
    for _ in range(limit):
        matcher.prepare()
        mask = matcher.allowed()
        assert mask.shape == (tokenizer.n_tokens,)
        assert set(mask[eos].tolist()) == {matcher.complete}, "EOS exactly where the grammar is complete"
        hidden = [i for i in tokenizer.special_ids | tokenizer.unused_ids if i not in tokenizer.eos_ids]
        assert not mask[hidden].any()
        seen.append((text_of(tokenizer, out), matcher.complete))
        if matcher.finished or (matcher.complete and (rng.random() < prefer_end or len(out) > 40)):
            return out, seen
        ids = np.flatnonzero(mask)
        forced = matcher.forced()
        if forced and rng.random() < 0.5:
            assert matcher.valid_prefix(forced) == len(forced)
            token = forced[0]
        else:
            token = int(rng.choice(ids[~np.isin(ids, eos)]))
        assert mask[token]
        matcher.accept(token)
        out.append(token)
    raise AssertionError(f"no end after {limit} tokens: {text_of(tokenizer, out)!r}")


def text_of(tokenizer, ids):
    return b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "surrogateescape")


def is_instance(text, schema):
    try:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
    except (ValueError, jsonschema.ValidationError):
        return False
    return not text[-1:].isspace() and not text[:1].isspace()


def whole(piece):
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True
