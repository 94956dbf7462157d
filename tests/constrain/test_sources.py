"""Sources that are wrong, hostile or too costly: an error that says where, and bounds."""

import random

import numpy as np
import pytest

from constrain.walks import walk
from qtransformers.errors import ConfigError, ConstraintError

DEEP = '{"items":' * 90 + "true" + "}" * 90
WIDE = {"type": "string"}
for _ in range(40):
    WIDE = {"type": "object", "properties": {"a": WIDE, "b": {"type": "integer"}}, "required": ["a"]}
HOSTILE = [
    ("json_schema", "{", "no JSON: .*line 1 column 2"),
    ("json_schema", "[]", "expected a JSON object"),
    ("json_schema", '{"minimum": NaN}', "NaN is no number"),
    ("json_schema", '{"minimum": 1e400}', "/minimum: inf"),
    ("json_schema", '{"minimum": ' + "9" * 5000 + "}", "no JSON"),
    ("json_schema", '{"items":' * 300 + "true" + "}" * 300, "nested deeper"),
    ("json_schema", "[" * 100_000 + "]" * 100_000, "nested deeper"),
    ("json_schema", {"type": "strin"}, "/: Invalid type: strin"),
    ("json_schema", {"properties": {"a": {"properties": {"b/c": {"type": "foo"}}}}}, "/properties/a/properties/b~1c: Invalid type"),
    ("json_schema", {"anyOf": [{"type": "null"}, {"pattern": "(("}]}, "/anyOf/1: regex parse error"),
    ("json_schema", {"properties": {"a": {"not": {}}}}, "/properties/a: Unimplemented keys"),
    ("json_schema", {"items": {"uniqueItems": True}}, "/items: Unimplemented keys"),
    ("json_schema", {"format": "no-such"}, "Unknown format"),
    ("json_schema", {"items": 5}, "expected a JSON object|array|boolean"),
    ("json_schema", {"properties": {"a": 5}}, "/properties/a: 5 is no schema"),
    ("json_schema", {"anyOf": ["a"]}, "/anyOf/0: 'a' is no schema"),
    ("json_schema", {1: 2}, "key 1 is no text"),
    ("json_schema", {"default": {1, 2}}, "not JSON serializable"),
    ("json_schema", {"enum": []}, "Unsatisfiable"),
    ("json_schema", False, "Unsatisfiable"),
    ("json_schema", {"type": "string", "minLength": 5, "maxLength": 2}, "minLength"),
    ("json_schema", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "nothing can be written"),
    ("json_schema", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "nothing can be written"),
    ("json_schema", {"$ref": "#/nowhere"}, "nowhere"),
    ("json_schema", {"$ref": "https://example.com/schema"}, "example.com"),
    ("json_schema", {"$ref": "file:///etc/passwd"}, "passwd"),
    ("json_schema", {"enum": [f"value{i}" for i in range(100_000)]}, "too big|at most"),
    ("json_schema", {"enum": [{"v": i} for i in range(50_000)]}, "/enum has 50,000 alternatives"),
    ("json_schema", {"anyOf": [{"const": i} for i in range(20_000)]}, "/anyOf has 20,000 alternatives"),
    ("json_schema", {"properties": {f"p{i}": {} for i in range(30_000)}}, "at most 2,000 properties"),
    ("json_schema", {"multipleOf": 123456789}, "/multipleOf.*exceeds"),
    ("json_schema", {"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "multipleOf.*exceeds"),
    ("json_schema", {"multipleOf": 1e-300}, "multipleOf"),
    ("json_schema", {"x-guidance": 5}, "x-guidance"),
    ("json_schema", " " * 3_000_000, "characters"),
    ("json_schema", None, "json_schema=None"),
    ("json_schema", 5, "json_schema=5"),
    ("json_schema", "\ud800", "surrogate"),
    ("json", "{}", "takes no source"),
    ("regex", "(", "unclosed group"),
    ("regex", "a{5,2}", "repetition"),
    ("regex", "(?=a)b", "look-around"),
    ("regex", r"a\1", "backreference"),
    ("regex", r"\p{Foo}", "Unicode property"),
    ("regex", r"[^\s\S]", "nothing can be written"),
    ("regex", "(" * 5000 + ")" * 5000, "nest|too"),
    ("regex", "x" * 20_000, "20,000 characters"),
    ("regex", b"a", "expected text"),
    ("lark", "", "no start rule"),
    ("lark", "start: foo", r"1\(8\): unknown name"),
    ("lark", "start: A\nA: /(/", r"2\(4\): invalid regex"),
    ("lark", "start: a\na: a", "nothing can be written"),
    ("lark", "start: " + "(" * 10_000 + '"a"' + ")" * 10_000, "too deeply nested"),
    ("lark", "start: <|no-such|>", "unknown special token"),
    ("gbnf", "", "no rule `root`"),
    ("gbnf", "root ::= root", "nothing can be written"),
    ("yaml", "a", "kind='yaml'"),
    (None, "a", "kind=None"),
    (["json"], "a", "kind="),
]  # fmt: skip


@pytest.mark.parametrize("kind, source, message", HOSTILE, ids=range(len(HOSTILE)))
def test_what_cannot_be_compiled_is_an_error_that_says_why(demo, kind, source, message):
    with pytest.raises(ConfigError, match=message) as e:
        demo[1].compile(kind, source)
    assert "<state>" not in str(e.value)


@pytest.mark.parametrize(
    "kind, source",
    [
        ("json_schema", DEEP),
        ("json_schema", WIDE),
        ("json_schema", {"type": "array", "items": {"$ref": "#"}, "minItems": 1}),
        ("json_schema", {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),  # never ends
        ("json_schema", {"type": "string", "maxLength": 10**9}),
        ("json_schema", {"type": "array", "items": {"type": "array", "minItems": 10**9}, "minItems": 10**9}),
        ("json_schema", {"enum": [f"value{i}" for i in range(20_000)]}),
        ("json_schema", {"enum": list(range(0, 100_000, 7))}),
        ("json_schema", {"const": "a long text " * 5000}),
        ("regex", "a{1000000000}"),
        ("regex", "(a{1000}){1000}"),
        ("regex", "(.*a.{1000})"),
        ("regex", "(a*)*" * 10 + "b"),
        ("lark", 'start: "a" start'),
        ("lark", 'start: "a"{1000000000}'),
        ("lark", "start: b0\n" + "\n".join(f"b{i}: b{i + 1} b{i + 1}" for i in range(60)) + '\nb60: "x"'),
    ],
)
def test_what_is_large_stays_bounded(demo, kind, source):
    matcher = demo[1].compile(kind, source).matcher()
    rng = random.Random(1)
    for _ in range(40):
        ids = np.flatnonzero(matcher.allowed())
        assert len(ids)
        matcher.forced()
        token = int(rng.choice(ids))
        matcher.accept(token)
        if matcher.finished:
            break


def test_what_turns_out_too_costly_ends_in_an_error(demo):
    tokenizer, grammars = demo
    with pytest.raises(ConstraintError, match="too many expressions"):
        for seed in range(50):
            walk(grammars.compile("regex", "a?" * 8000), tokenizer, random.Random(seed), prefer_end=0)


def test_keywords_that_constrain_nothing_are_warned_about(demo):
    with pytest.warns(UserWarning, match="/properties/a: 'minLenght' is no keyword"):
        demo[1].compile("json_schema", {"properties": {"a": {"type": "string", "minLenght": 3}, "foo": {}}})


def test_a_tokenizer_that_no_text_can_be_written_with(demo):
    with pytest.raises(ConstraintError, match="nothing can be written"):
        demo[1].compile("lark", "start: A\nA: /a/ & /b/")
