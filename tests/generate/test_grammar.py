"""Grammars in the engine: batches, speculation, rewinds, cancellation, and how answers end."""

import json
import random
import re
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from qtransformers.errors import ConfigError, ConstraintError
from qtransformers.generate import Request, Sequence, Stream
from qtransformers.model import Model
from qtransformers.sampling import Sampling

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "animals": {"type": "array", "items": {"enum": ["fox", "owl", "bear"]}, "maxItems": 3},
    },
    "required": ["name", "age", "animals"],
    "additionalProperties": False,
}
STORY = [{"role": "user", "content": "Tell me a story about a brave fox."}]


@pytest.fixture(scope="module")
def demo(data):
    with Model.load(data / "demo-Q8_0.gguf", context_length=1024) as model:
        yield model


@pytest.mark.parametrize("temperature", [0, 1, 3])
def test_answers_are_instances_of_the_schema(demo, temperature):
    for seed in range(5):
        answer = demo.chat(STORY, json_schema=PERSON, temperature=temperature, seed=seed, max_tokens=300)
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), PERSON)


def test_answers_match_a_regex_and_end_where_nothing_may_follow(demo):
    answer = demo.chat(STORY, regex=r"Once upon a time there was an? (fox|owl)\.", temperature=1, seed=1)
    assert re.fullmatch(r"Once upon a time there was an? (fox|owl)\.", answer.text)
    assert answer.finish_reason == "stop" and not demo.eos_ids & set(answer.tokens)
    longer = demo.generate("Once", regex=r"( [a-z]+){3,}\.", temperature=1, seed=3, max_tokens=200)
    assert re.fullmatch(r"( [a-z]+){3,}\.", longer.text)
    assert demo.generate("Once", regex="", temperature=1).text == ""


def test_gbnf_and_lark(demo):
    gbnf = 'root ::= "(" root ")" | [a-c]{2}'
    lark = 'start: "(" start ")" | /[a-c]{2}/'
    for grammar in (gbnf, lark):
        answer = demo.generate("x", grammar=grammar, temperature=2, seed=4, max_tokens=100)
        assert re.fullmatch(r"(\(*)[a-c]{2}\)*", answer.text) and answer.text.count("(") == answer.text.count(")")
    assert demo.generate("x", grammar=gbnf, temperature=0).text == demo.generate("x", grammar=lark, temperature=0).text


def test_max_tokens_cut_an_answer_short(demo):
    answer = demo.chat(STORY, json_schema=PERSON, temperature=0, max_tokens=3)
    assert (answer.finish_reason, len(answer.tokens)) == ("length", 3)


def test_side_by_side_as_alone(demo):
    """Greedy answers of many requests, with different grammars and without, are those that each gives alone."""
    asked = [
        {"json_schema": PERSON},
        {"regex": r"[A-Z][a-z ]{10,40}\."},
        {},
        {"json_schema": {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 5}},
        {"grammar": 'root ::= "{" [a-z]{3,9} "}"'},
        {"json_schema": PERSON, "speculate": False},
    ]
    given = {"temperature": 0, "max_tokens": 80}
    alone = [demo.chat(STORY, **given, **one) for one in asked]
    streams = [demo.chat(STORY, stream=True, **given, **one) for one in asked * 2]
    together = [""] * len(streams)
    open_streams = dict(enumerate(streams))
    while open_streams:
        for i, stream in list(open_streams.items()):
            chunk = next(stream, None)
            if chunk is None:
                del open_streams[i]
            else:
                together[i] += chunk.text
    assert together == [answer.text for answer in alone] * 2
    assert alone[0].text == alone[5].text
    assert demo.usage.running == 0


def test_what_a_grammar_forces_is_guessed_and_confirmed(demo):
    keys = {f"a rather long name of property number {i}": {"type": "boolean"} for i in range(4)}
    schema = {"type": "object", "properties": keys, "required": list(keys), "additionalProperties": False}
    plain = demo.chat(STORY, json_schema=schema, temperature=0, speculate=False)
    guessed = demo.chat(STORY, json_schema=schema, temperature=0)
    assert guessed.text == plain.text and guessed.tokens == plain.tokens
    assert list(json.loads(plain.text)) == list(keys)
    assert plain.timings.drafted_tokens == 0
    assert guessed.timings.accepted_tokens <= guessed.timings.drafted_tokens


def banned(demo, grammar, **given):
    request = Request(
        demo.chat_ids(STORY), 200, Sampling(temperature=1, seed=given.pop("seed", 0)), grammar=grammar, stop_ids=demo.eos_ids, **given
    )  # fmt: skip
    return Stream(demo._engine, Sequence(request, demo.tokenizer.decoder(continues=True), demo._engine.n_tokens))


def test_banned_texts_rewind_the_grammar_too(demo):
    grammar = demo._prepare._grammars.compile("json_schema", PERSON)
    for seed in range(6):
        answer = banned(demo, grammar, banned=("fox", "1"), seed=seed).read()
        assert answer.finish_reason == "stop"
        assert not any(text in answer.text for text in ("fox", "1"))
        jsonschema.validate(json.loads(answer.text), PERSON)


def test_a_ban_that_leaves_nothing_ends_the_answer(demo):
    grammar = demo._prepare._grammars.compile("regex", "(ab|ac)")
    answer = banned(demo, grammar, banned=("ab", "ac")).read()
    assert answer.finish_reason == "banned"


def test_min_tokens_give_way_where_nothing_may_follow(demo):
    grammar = demo._prepare._grammars.compile("regex", "ab?")
    answer = banned(demo, grammar, min_tokens=50).read()
    assert (answer.text, answer.finish_reason) == ("ab", "stop")


def test_hooks_that_forbid_everything_are_an_error_of_that_request(demo):
    def forbid(tokens, logits):
        return np.full_like(logits, -np.inf)

    with pytest.raises(ConfigError, match="a hook returned logits of which the largest is -inf"):
        demo.chat(STORY, regex="a+", hooks=[forbid])
    assert demo.chat(STORY, regex="ab", temperature=0).text == "ab"


def test_a_grammar_that_leads_nowhere_is_an_error_of_that_request(demo):
    letters = [i for i in range(demo.tokenizer.n_tokens) if set(demo.tokenizer.token_bytes(i)) == {ord("a")}]

    def only_a(tokens, logits):
        logits[letters] += 1000
        return logits

    with demo.chat(STORY, stream=True, temperature=0) as other:
        next(other)
        with pytest.raises(ConstraintError, match="too many expressions"):
            demo.chat(STORY, regex="a?" * 7990 + "b", hooks=[only_a], max_tokens=800)
        assert other.read().finish_reason == "stop"


def test_cancelling_at_any_token_frees_everything(demo):
    rng = random.Random(0)
    free = demo.usage.free_pages
    for _ in range(20):
        stream = demo.chat(STORY, json_schema=PERSON, stream=True, temperature=1)
        for _ in range(rng.randrange(8)):
            next(stream, None)
        stream.close()
    assert (demo.usage.running, demo.usage.free_pages) == (0, free)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"json_schema": "{"}, "json_schema is no JSON"),
        ({"json_schema": {"properties": {"a": {"type": "x"}}}}, "/properties/a: Invalid type"),
        ({"json_schema": 5}, "json_schema=5"),
        ({"json_schema": False}, "schema is false"),
        ({"regex": "("}, "unclosed group"),
        ({"regex": 5}, "regex=5"),
        ({"grammar": "root ::= foo"}, "'foo' is not defined"),
        ({"grammar": "start: foo"}, "unknown name"),
        ({"grammar": {}}, "grammar={}"),
        ({"grammar": 'root ::= "a"', "regex": "a"}, "regex and grammar: an answer can follow one"),
    ],
)
def test_bad_grammars_are_refused_before_anything_is_computed(demo, given, message):
    with pytest.raises(ConfigError, match=message):
        demo.chat(STORY, stream=True, **given)
    assert demo.usage.running == 0


def test_the_first_blank_of_sentencepiece_belongs_to_the_grammar(demo):
    request = Request((1,), 5, Sampling(temperature=0))
    assert replace(request, grammar=None).grammar is None
    assert demo.generate("Once upon", regex=" a[a-z ]{3}", temperature=0).text.startswith(" a")
