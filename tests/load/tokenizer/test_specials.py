import random
import time

from qtransformers.load.tokenizer.specials import SpecialMatcher, Strip


def plain_split(text, tokens):
    """The definition: for each token, the longest first, cut every piece at every occurrence from left to right."""
    pieces = [text] if text else []
    for token in sorted(tokens, key=lambda t: len(t.encode()), reverse=True):
        out = []
        for piece in pieces:
            if isinstance(piece, int):
                out.append(piece)
                continue
            parts = piece.split(token)
            for n, part in enumerate(parts):
                out += [tokens.index(token)] * (n > 0) + ([part] if part else [])
        pieces = out
    return pieces


def test_cuts_as_defined():
    r = random.Random(1)
    for _ in range(2000):
        tokens = list({"".join(r.choices("ab<>", k=r.randint(1, 5))) for _ in range(r.randint(0, 6))})
        tokens = list({len(t): t for t in tokens}.values())  # of equals in length none is first by definition
        text = "".join(r.choices("ab<> ", k=r.randint(0, 40)))
        assert SpecialMatcher(tokens, range(len(tokens))).split(text) == plain_split(text, tokens)


def test_the_longest_is_first_wherever_it_is():
    assert SpecialMatcher(["abcd", "zab"], [0, 1]).split("zabcd") == ["z", 0]
    assert SpecialMatcher(["<a>", "<a><b>"], [0, 1]).split("x<a><b><a>") == ["x", 1, 0]


def test_only_the_ids_given():
    assert SpecialMatcher(["<a>", "<b>"], [1]).split("<a><b>") == ["<a>", 1]
    assert SpecialMatcher(["<a>"], []).split("<a>") == ["<a>"]
    assert SpecialMatcher(["<a>"], [0]).split("") == []


def test_blanks_beside_a_token_go():
    split = SpecialMatcher(["<m>", "<k>"], [0, 1], Strip(left=frozenset({0}), right=frozenset({1}))).split
    assert split("a  <m>  b  <k>  c") == ["a", 0, "  b  ", 1, "c"]
    assert split(" \n<m>") == [0]
    assert split("<k>\t ") == [1]
    assert split("<k> <m>") == [1, 0]
    assert split("a\u00a0<m>") == ["a\u00a0", 0]  # not a blank of C


def test_long_texts_take_linear_time():
    tokens = ["\n" * n for n in range(2, 32)] + [f"<unused{n}>" for n in range(2000)]
    matcher = SpecialMatcher(tokens, range(len(tokens)))
    start = time.process_time()
    assert len(matcher.split("\n" * 100_000)) == -(-100_000 // 31)
    assert len(matcher.split("<" * 100_000)) == 1
    assert len(matcher.split("<unused7>" * 10_000)) == 10_000
    assert time.process_time() - start < 20
