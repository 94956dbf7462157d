"""Random walks through masks: whatever is drawn, the text follows the grammar, and may end exactly where it is complete."""

import gc
import json
import random
import re
import subprocess
import sys

import jsonschema
import numpy as np
import pytest

from qtransformers.constrain import Grammars, Vocabulary
from qtransformers.errors import ConfigError, ConstraintError, UnsupportedError

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


@pytest.mark.parametrize("name", SCHEMAS)
def test_walks_through_a_schema_give_its_instances(vocabulary, name):
    tokenizer, grammars = vocabulary
    grammar = grammars.compile("json_schema", SCHEMAS[name])
    rng = random.Random(name)
    for _ in range(12):
        out, seen = walk(grammar, tokenizer, rng)
        value = json.loads(text_of(tokenizer, out))
        jsonschema.validate(value, SCHEMAS[name], format_checker=jsonschema.FormatChecker())
        for text, complete in seen:
            if complete:
                assert is_instance(text, SCHEMAS[name]), text


@pytest.mark.parametrize("pattern", REGEXES)
def test_walks_through_a_regex_match_as_a_whole(vocabulary, pattern):
    tokenizer, grammars = vocabulary
    grammar = grammars.compile("regex", pattern)
    rng = random.Random(pattern)
    for _ in range(12):
        out, seen = walk(grammar, tokenizer, rng, prefer_end=0.3)
        assert re.fullmatch(pattern, text_of(tokenizer, out))
        for text, complete in seen:
            assert complete == bool(whole(text.encode("utf-8", "surrogateescape")) and re.fullmatch(pattern, text)), (
                text
            )


def test_any_json_object(vocabulary):
    tokenizer, grammars = vocabulary
    matcher = grammars.compile("json").matcher()
    ids = Vocabulary(tokenizer)('{"a": [1, {"b": "é\\n"}], "c": null}')
    assert matcher.valid_prefix(ids) == len(ids)
    for token in ids:
        assert not matcher.complete
        matcher.accept(token)
    assert matcher.complete and matcher.finished
    assert not grammars.compile("json").matcher().valid_prefix([tokenizer.id_of("[")])


@pytest.mark.parametrize("name", ["demo", "llama-spm", "llama-bpe"])
def test_tokens_may_end_within_characters(grammars_of, name):
    tokenizer, grammars = grammars_of(name)
    parts = [
        i for i in range(tokenizer.n_tokens) if i not in tokenizer.special_ids and not whole(tokenizer.token_bytes(i))
    ]
    assert parts
    matcher = grammars.compile("regex", "[ä€😀ཀ]{8}").matcher()
    rng, out, broken = random.Random(5), [], 0
    while not matcher.finished:
        mask = matcher.allowed()
        cut = [i for i in parts if mask[i]]
        token = rng.choice(cut or np.flatnonzero(mask).tolist())
        broken += token in parts
        matcher.accept(token)
        out.append(token)
        text = b"".join(map(tokenizer.token_bytes, out))
        assert matcher.complete == (whole(text) and len(text.decode()) == 8)
    assert broken >= 8
    assert re.fullmatch("[ä€😀ཀ]{8}", text_of(tokenizer, out))


def whole(piece):
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_rollback_is_as_if_nothing_had_been(vocabulary):
    _, grammars = vocabulary
    rng = random.Random(11)
    for kind, source in (("json_schema", SCHEMAS["array"]), ("regex", REGEXES[0]), ("gbnf", 'root ::= "(" root ")" | [a-c]+')):  # fmt: skip
        grammar = grammars.compile(kind, source)
        matcher, tokens = grammar.matcher(), []
        for _ in range(60):
            if tokens and (rng.random() < 0.3 or matcher.finished):
                n = rng.randint(1, len(tokens))
                matcher.rollback(n)
                del tokens[-n:]
            else:
                tokens.append(int(rng.choice(np.flatnonzero(matcher.allowed()))))
                matcher.accept(tokens[-1])
            fresh = grammar.matcher()
            for token in tokens:
                fresh.accept(token)
            assert np.array_equal(matcher.allowed(), fresh.allowed())
            assert (matcher.complete, matcher.finished) == (fresh.complete, fresh.finished)
        with pytest.raises(ConstraintError, match=f"rollback of {len(tokens) + 1} tokens"):
            matcher.rollback(len(tokens) + 1)
        with pytest.raises(ConstraintError, match="rollback of -1"):
            matcher.rollback(-1)


def test_a_draft_counts_as_far_as_its_tokens_could_be_accepted(vocabulary):
    tokenizer, grammars = vocabulary
    rng = random.Random(3)
    eos = min(tokenizer.eos_ids)
    for name in ("array", "anyOf", "pattern"):
        grammar = grammars.compile("json_schema", SCHEMAS[name])
        for _ in range(20):
            draft = [*walk(grammar, tokenizer, rng)[0], *rng.choice([[eos], [eos, eos], [], [7], [tokenizer.n_tokens], [-1]])]  # fmt: skip
            if rng.random() < 0.4:
                draft[rng.randrange(len(draft))] = rng.randrange(tokenizer.n_tokens)
            matcher, n = grammar.matcher(), 0
            for token in draft:
                try:
                    matcher.accept(token)
                except ConstraintError:
                    break
                n += 1
            fresh = grammar.matcher()
            before = fresh.allowed().copy()
            assert fresh.valid_prefix(draft) == n
            assert fresh.valid_prefix([]) == 0
            assert np.array_equal(fresh.allowed(), before)
            assert fresh.valid_prefix(draft) == n


def test_a_token_that_may_not_follow_is_refused_and_changes_nothing(demo):
    tokenizer, grammars = demo
    matcher = grammars.compile("regex", "ab").matcher()
    eos = min(tokenizer.eos_ids)
    for token in (tokenizer.id_of("b"), eos, -1, tokenizer.n_tokens):
        with pytest.raises(ConstraintError, match=f"token {token} may not follow"):
            matcher.accept(token)
    matcher.accept(tokenizer.id_of("a"))
    assert not matcher.complete
    matcher.accept(tokenizer.id_of("b"))
    assert matcher.finished
    matcher.accept(eos)
    assert matcher.finished and matcher.valid_prefix([eos]) == 0 and matcher.forced() == []
    assert set(np.flatnonzero(matcher.allowed()).tolist()) == tokenizer.eos_ids
    with pytest.raises(ConstraintError, match="may not follow"):
        matcher.accept(eos)
    matcher.rollback(2)
    assert matcher.valid_prefix([tokenizer.id_of("b"), eos]) == 2


def test_forced_tokens_are_cut_as_the_tokenizer_cuts(vocabulary):
    tokenizer, grammars = vocabulary
    text = '{"description":"It was a sunny day, and the little fox went out to play with its friend."}'
    schema = {
        "type": "object",
        "properties": {"description": {"const": json.loads(text)["description"]}},
        "required": ["description"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
    matcher = grammars.compile("json_schema", schema).matcher()
    before = matcher.allowed().copy()
    forced = matcher.forced()
    assert np.array_equal(matcher.allowed(), before)
    written = b"".join(map(tokenizer.token_bytes, forced)).decode()
    assert text.startswith(written) and len(written) > len(text) - 12  # the last could be longer
    own = tokenizer.encode("\n" + text, add_bos=False)
    assert any(own[i : i + len(forced)] == forced for i in range(len(own)))
    out = []
    while not matcher.finished:
        token = (matcher.forced() or np.flatnonzero(matcher.allowed()).tolist())[0]
        matcher.accept(token)
        out.append(token)
    assert text_of(tokenizer, out) == text


def test_nothing_is_forced_where_there_is_a_choice(demo):
    tokenizer, grammars = demo
    assert grammars.compile("regex", "[ab]cd").matcher().forced() == []
    assert grammars.compile("regex", "(abc)?").matcher().forced() == []  # the answer may end
    matcher = grammars.compile("regex", "x[ab]").matcher()
    assert matcher.forced() in ([], [tokenizer.id_of("x")])


def test_apply_forbids_in_place_what_the_mask_forbids(vocabulary):
    tokenizer, grammars = vocabulary
    matcher = grammars.compile("json_schema", SCHEMAS["object"]).matcher()
    rng = np.random.default_rng(0)
    for width in (tokenizer.n_tokens, tokenizer.n_tokens + 37):  # with a vocabulary padded beyond its tokens
        logits = rng.standard_normal(width).astype(np.float32)
        expected = np.full(width, -np.inf, np.float32)
        mask = matcher.allowed()
        expected[: len(mask)][mask] = logits[: len(mask)][mask]
        matcher.prepare()
        matcher.apply(logits)
        assert np.array_equal(logits, expected)
    forbidden = np.where(mask, -np.inf, 1).astype(np.float32)
    with pytest.raises(ConstraintError, match="other settings"):
        matcher.apply(forbidden)


def test_matchers_and_copies_go_their_own_ways(demo):
    tokenizer, grammars = demo
    grammar = grammars.compile("regex", "a(b|c)d")
    one, two = grammar.matcher(), grammar.matcher()
    one.accept(tokenizer.id_of("a"))
    one.prepare()
    three = one.copy()
    three.accept(tokenizer.id_of("b"))
    assert two.valid_prefix([tokenizer.id_of("a")]) == 1
    assert one.valid_prefix([tokenizer.id_of("c")]) == 1
    assert three.valid_prefix([tokenizer.id_of("d")]) == 1
    assert three.valid_prefix([tokenizer.id_of("c")]) == 0
    three.rollback(2)
    assert np.array_equal(three.allowed(), two.allowed())


def test_many_at_once_in_threads(demo):
    tokenizer, grammars = demo
    rng = random.Random(2)
    grammar = grammars.compile("json_schema", SCHEMAS["anyOf"])
    alone = [grammar.matcher() for _ in range(16)]
    together = [grammar.matcher() for _ in range(16)]
    for _ in range(12):
        for matcher in together:
            matcher.prepare()
        for a, b in zip(alone, together, strict=True):
            mask = a.allowed()
            assert np.array_equal(mask, b.allowed())
            token = int(rng.choice(np.flatnonzero(mask)))
            if token not in tokenizer.eos_ids:
                a.accept(token)
                b.accept(token)


def test_each_source_is_compiled_once(demo):
    _, grammars = demo
    schema = {"type": "integer"}
    assert grammars.compile("json_schema", schema) is grammars.compile("json_schema", json.dumps(schema))
    assert grammars.compile("regex", "a") is grammars.compile("regex", "a")
    assert grammars.compile("regex", "a") is not grammars.compile("lark", 'start: "a"')


def test_the_order_of_properties_is_that_of_the_schema(demo):
    _, grammars = demo
    one = {"type": "object", "properties": {"a": True, "b": True}}
    two = {"type": "object", "properties": {"b": True, "a": True}}
    assert grammars.compile("json_schema", one) is not grammars.compile("json_schema", two)


def test_only_so_many_are_kept(data):
    from qtransformers.constrain import MAX_KEPT
    from qtransformers.load.tokenizer import Tokenizer

    grammars = Grammars(Tokenizer.from_gguf(data / "demo-Q8_0.gguf"))
    first = grammars.compile("regex", "x")
    for i in range(MAX_KEPT - 1):
        grammars.compile("regex", f"a{i}")
    assert grammars.compile("regex", "x") is first
    for i in range(MAX_KEPT):
        grammars.compile("regex", f"b{i}")
    assert grammars.compile("regex", "x") is not first


def test_a_closed_one_still_answers(data):
    from qtransformers.load.tokenizer import Tokenizer

    grammars = Grammars(Tokenizer.from_gguf(data / "demo-Q8_0.gguf"))
    matcher = grammars.compile("regex", "ab").matcher()
    grammars.close()
    with pytest.raises(ConstraintError, match="closed"):
        grammars.compile("regex", "c")
    matcher.prepare()
    assert matcher.allowed().any()


def test_what_a_grammar_keeps_goes_with_it(data):
    """A vocabulary and its twin in llguidance: models that come and go would leave a megabyte each."""
    from qtransformers.load.tokenizer import Tokenizer

    def alive():
        gc.collect()
        return sum(isinstance(x, Vocabulary) for x in gc.get_objects())

    before = alive()
    grammars = Grammars(Tokenizer.from_gguf(data / "demo-Q8_0.gguf"))
    matcher = grammars.compile("regex", "ab").matcher()
    matcher.prepare()
    assert matcher.allowed().any() and alive() == before + 2
    grammars.close()
    del grammars, matcher
    assert alive() == before


def test_a_grammar_that_exceeded_its_limits_is_made_anew(demo):
    tokenizer, grammars = demo
    source = r"([a-z]{1,50}\d?){1,50}"
    grammar = grammars.compile("regex", source)
    with pytest.raises(ConstraintError, match="too many"):
        for seed in range(50):
            walk(grammar, tokenizer, random.Random(seed), prefer_end=0)
    assert grammar.broken
    fresh = grammars.compile("regex", source)
    assert fresh is not grammar
    assert fresh.matcher().allowed().any()


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


def test_blanks_between_the_parts_of_a_value_are_bounded(demo):
    tokenizer, grammars = demo
    grammar = grammars.compile("json_schema", {"type": "array", "items": {"type": "integer"}})
    accepted = {
        text: grammar.matcher().valid_prefix([tokenizer.id_of(c) for c in text.replace(" ", "Ġ").replace("\n", "Ċ")])
        for text in ("[1, 2]", "[ 1]", "[\n 1\n]", "[  1]", "[\n\n1]", "[" + "\n" + " " * 41)
    }
    assert [n == len(text) for text, n in accepted.items()] == [True, True, True, False, False, False]


def test_keywords_that_constrain_nothing_are_warned_about(demo):
    with pytest.warns(UserWarning, match="/properties/a: 'minLenght' is no keyword"):
        demo[1].compile("json_schema", {"properties": {"a": {"type": "string", "minLenght": 3}, "foo": {}}})


def test_a_tokenizer_that_no_text_can_be_written_with(demo):
    with pytest.raises(ConstraintError, match="nothing can be written"):
        demo[1].compile("lark", "start: A\nA: /a/ & /b/")


def test_llguidance_is_imported_with_the_first_grammar():
    code = "import sys, qtransformers.constrain as c; assert 'llguidance' not in sys.modules; print(c.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "qtransformers.constrain"


def test_without_llguidance_the_error_names_it(data, monkeypatch):
    from qtransformers.load.tokenizer import Tokenizer

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UnsupportedError, match="pip install llguidance"):
        Grammars(Tokenizer.from_gguf(data / "demo-Q8_0.gguf")).compile("regex", "a")
