"""Random walks through masks: whatever is drawn, the text follows the grammar, and may end exactly where it is complete."""

import json
import random
import re

import jsonschema
import numpy as np
import pytest

from constrain.walks import REGEXES, SCHEMAS, is_instance, text_of, walk, whole
from qtransformers.constrain.vocabulary import Vocabulary


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


def test_blanks_between_the_parts_of_a_value_are_bounded(demo):
    tokenizer, grammars = demo
    grammar = grammars.compile("json_schema", {"type": "array", "items": {"type": "integer"}})
    accepted = {
        text: grammar.matcher().valid_prefix([tokenizer.id_of(c) for c in text.replace(" ", "Ġ").replace("\n", "Ċ")])
        for text in ("[1, 2]", "[ 1]", "[\n 1\n]", "[  1]", "[\n\n1]", "[" + "\n" + " " * 41)
    }
    assert [n == len(text) for text, n in accepted.items()] == [True, True, True, False, False, False]


def test_the_order_of_properties_is_that_of_the_schema(demo):
    _, grammars = demo
    one = {"type": "object", "properties": {"a": True, "b": True}}
    two = {"type": "object", "properties": {"b": True, "a": True}}
    assert grammars.compile("json_schema", one) is not grammars.compile("json_schema", two)
