"""GBNF against a recogniser of its own: what a grammar accepts, character by character."""

import itertools

import numpy as np
import pytest

from qtransformers.constrain.automaton import prefix_free
from qtransformers.constrain.gbnf import Alt, Chars, Ref, Repeat, Seq, parse
from qtransformers.constrain.gbnf_lark import inlined, to_lark
from qtransformers.constrain.vocabulary import Vocabulary
from qtransformers.errors import ConstraintError

JSON = r"""
# any JSON value
root   ::= value
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt/] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,3})? ws
ws     ::= [ \t\n]{0,2}
"""
GRAMMARS = {
    "one of two lexemes": 'root ::= "abd" | "a" "b" "c"',
    "a lexeme within one": 'root ::= "ab" | "a" "bc"',
    "greedy": 'root ::= [ab]+ "ab" [a-c]?',
    "greedy twice": "root ::= word word\nword ::= [a-b]+",
    "recursive": 'root ::= "(" root ")" | "abd" | "a" "b" "c" | ""',
    "recursive and greedy": 'root ::= "(" root ")" | [ab]* "ab" | "(a"',
    "keyed": 'root ::= "(" root ")" | "(a" [b-d]* ")" root?',
    "left recursive": 'root ::= root "a" | "b"',
    "mutual": 'root ::= "a" other | "b"\nother ::= "(" root ")" | root "c"',
    "runs": 'root ::= "(" (root | quoted)* ")"\nquoted ::= "a" [bc]* "d"',
    "counts": "root ::= [ab]{2} [c]{1,} [d]{0,2}",
    "optional group": 'root ::= ("a" | "b" ("c")? )* "d"?',
    "nullable": "root ::= [a]* [b]* | ",
    "any": 'root ::= "a" . "b"',
    "negated": "root ::= [^ab]+",
    "comments": 'root ::= # first\n  "a" | # second\n  "b"\n  | "c" # third\n',
}
ALPHABET = "abcd()"


def accepts(rules, text):
    """Whether the rules derive `text`: ends reachable from each start, grown to a fixed point."""
    known = {}

    def ends(node, i):
        if isinstance(node, Chars):
            return {i + 1} if i < len(text) and any(a <= ord(text[i]) <= b for a, b in node.ranges) else set()
        if isinstance(node, Ref):
            return known.setdefault((node.name, i), set())
        if isinstance(node, Alt):
            return set().union(*(ends(part, i) for part in node.parts))
        if isinstance(node, Seq):
            found = {i}
            for part in node.parts:
                found = set().union(*(ends(part, j) for j in found)) if found else found
            return found
        found, at, n = set(), {i}, 0
        while at and (node.most is None or n <= node.most) and n <= len(text) + node.least:
            if n >= node.least:
                found |= at
            at = set().union(*(ends(node.part, j) for j in at))
            n += 1
        return found

    known[("root", 0)] = set()
    changed = True
    while changed:
        before = {key: set(value) for key, value in known.items()}
        for name, i in list(known):
            known[name, i] |= ends(rules[name], i)
        changed = before != known
    return len(text) in known["root", 0]


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_grammar_accepts_exactly_what_it_derives(demo, name):
    tokenizer, grammars = demo
    grammar, rules = grammars.compile("gbnf", GRAMMARS[name]), parse(GRAMMARS[name])
    one = {c: tokenizer.id_of(c) for c in ALPHABET}
    n_accepted = 0
    for length in range(6):
        for text in map("".join, itertools.product(ALPHABET, repeat=length)):
            expected = accepts(rules, text)
            n_accepted += expected
            matcher = grammar.matcher()
            ids = [one[c] for c in text]
            found = matcher.valid_prefix(ids) == length
            if found:
                for token in ids:
                    matcher.accept(token)
                found = matcher.complete
            assert found == expected, text
    assert n_accepted


def test_json(vocabulary):
    tokenizer, grammars = vocabulary
    ids = Vocabulary(tokenizer)
    for text, right in {
        '{"a": [1, -2.5e+3, "x\\"\\u00e9 é€😀"], "b": {"c": null}}': True,
        '["true", true, false]\n': True,
        '{"a": 01}': False,
        '{"a"   : 1}': False,
        '["a\nb"]': False,
        '["\\x"]': False,
    }.items():
        matcher = grammars.compile("gbnf", JSON).matcher()
        draft = ids(text)
        assert (matcher.valid_prefix(draft) == len(draft)) == right, text
        if right:
            for token in draft:
                assert matcher.allowed()[token]
                matcher.accept(token)
            assert matcher.complete


def test_what_cannot_be_mistaken_is_one_lexeme():
    lark = to_lark(JSON)
    string = next(line for line in lark.splitlines() if "\\x{22}-\\x{22}" in line and "{75}" in line)
    assert string.count("/") == 2 and string.endswith("/ r6")  # the string, and the rule of white space
    assert "start: /" in to_lark('root ::= "a" b\nb ::= [0-9]{1,3}')  # no recursion: one lexeme for all


def test_prefix_free():
    def node(source):
        found = inlined(Ref("root", 0), parse("root ::= " + source))
        assert found is not None
        return found

    for source in ('"abc"', '"a" [^b]* "b"', '("ab" | "cd")', '[a-c]{3}', '"\\"" ([^"\\\\] | "\\\\" .)* "\\""'):  # fmt: skip
        assert prefix_free(node(source)), source
    for source in ('"a"*', '"a"+', '("a" | "ab")', '"a" "b"?', '""', '"a" [ab]* "b"', "[a-c]{2,3}"):
        assert not prefix_free(node(source)), source


def test_escapes_and_classes():
    rules = parse(r'root ::= "\x41\u00e9\U0001F600\n\"\\" [\]\-\x41-C^] [^\n] [a-] .')
    assert isinstance(rules["root"], Seq)
    ranges = [part.ranges for part in rules["root"].parts[1:]]
    assert rules["root"].parts[0] == Seq(tuple(Chars(((ord(c), ord(c)),)) for c in 'Aé😀\n"\\'))
    assert ranges == [
        ((45, 45), (65, 67), (93, 94)),
        ((0, 9), (11, 0x10FFFF)),
        ((45, 45), (97, 97)),
        ((0, 0x10FFFF),),
    ]
    assert parse("root ::= [a]{2,5}")["root"] == Repeat(Chars(((97, 97),)), 2, 5)


@pytest.mark.parametrize(
    "source, message",
    [
        ("", "no rule `root`"),
        ('a ::= "x"', "no rule `root`"),
        ("root ::= foo", "line 1, column 10: .*rule 'foo' is not defined"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1: .*twice"),
        ('root := "a"', "line 1, column 6: .*expected ::="),
        ('root ::= "a', "ends within a literal"),
        ("root ::= [a", "ends within"),
        ("root ::= []", "without characters"),
        (r"root ::= [^\x00-\U0010FFFF]", "without characters"),
        ("root ::= [z-a]", "backwards"),
        (r'root ::= "\q"', "line 1, column 11: .*unknown escape"),
        (r'root ::= "\x4"', "unknown escape"),
        (r'root ::= "\uD800"', r"U\+D800 is no character"),
        (r'root ::= "\UFFFFFFFF"', "is no character"),
        ('root ::= ("a"', r"expected \)"),
        ('root ::= "a")', "expected the end of the line"),
        ('root ::= "a"{3,2}', "repetition of 3 to 2"),
        ('root ::= "a"{5000}', "up to 2000"),
        ('root ::= "a"{99999999999}', "expected counts"),
        ('root ::= "a"{x}', "expected counts"),
        ('root ::= "a"*+', "repetition of a repetition"),
        ("root ::= <think>", "tokens by name"),
        ("root ::= " + "(" * 30 + '"a"' + ")" * 30, "nested deeper than 20"),
        ("root ::= @", "expected the end of the line"),
        ('"a"', "the name of a rule"),
    ],
)
def test_errors_say_where(source, message):
    with pytest.raises(ConstraintError, match=message):
        to_lark(source)


@pytest.mark.parametrize(
    "source",
    [
        "root ::= a0\n" + "\n".join(f"a{i} ::= a{i + 1} a{i + 1}" for i in range(300)) + '\na300 ::= "x"',
        "root ::= a0\n" + "\n".join(f"a{i} ::= a{i + 1}" for i in range(2000)) + '\na2000 ::= "x"',
        'root ::= "' + "a" * 5000 + '" root | [a-z]*',
        'root ::= "(" root ")" | ' + '("a" [b]* "c") ' * 1500,
        "root ::= " + " | ".join(f'"{i}" "("* root?' for i in range(1000)),
        "root ::= (((((([a-z]{2000}){2000}){2000}){2000}){2000}){2000}){2000}",
    ],
    ids=range(6),
)
def test_large_grammars_stay_bounded(demo, source):
    matcher = demo[1].compile("gbnf", source).matcher()
    for _ in range(10):
        matcher.accept(int(np.flatnonzero(matcher.allowed())[0]))
        if matcher.finished:
            break
