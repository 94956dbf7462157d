"""Matchers: back and forth, drafts, what is forced, copies and threads."""

import json
import random

import numpy as np
import pytest

from constrain.walks import REGEXES, SCHEMAS, text_of, walk
from qtransformers.errors import ConstraintError


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
