"""GBNF, the grammars of llama.cpp, read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from qtransformers.checks import shown
from qtransformers.errors import ConstraintError

MAX_DEPTH = 20  # groups within groups; llguidance bears little more
MAX_REPEATS = 2000
LAST_CHARACTER = 0x10FFFF
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-", "^": "^"}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
Range = tuple[int, int]  # code points, both included


@dataclass(frozen=True)
class Chars:
    """One character out of sorted, disjoint ranges."""

    ranges: tuple[Range, ...]


@dataclass(frozen=True)
class Seq:
    """One after the other; none is the empty text."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Alt:
    """Any of these."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`least` to `most` times; None has no limit."""

    part: Node
    least: int
    most: int | None


@dataclass(frozen=True)
class Ref:
    """A rule by its name."""

    name: str
    place: int = field(compare=False)


Node = Chars | Seq | Alt | Repeat | Ref


def parse(source: str) -> dict[str, Node]:
    """Rules by name, `root` among them, every name defined."""
    return _Parser(source).rules()


class _Parser:
    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._refs: list[Ref] = []

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        self._space(lines=True)
        while self._at < len(self._source):
            place = self._at
            name = self._name("the name of a rule")
            self._space(lines=False)
            self._expect("::=")
            self._space(lines=True)
            if name in rules:
                raise self._error(f"rule {name!r} is there twice; expected one of that name", place)
            rules[name] = self._alternatives(0)
            if self._at < len(self._source) and self._peek() not in "\r\n":
                raise self._error("expected the end of the line, or ( ) [ ] | . * + ? { or a literal")
            self._space(lines=True)
        if "root" not in rules:
            raise ConstraintError("gbnf: there is no rule `root`, which a grammar begins with. Add one.")
        for ref in self._refs:
            if ref.name not in rules:
                raise self._error(f"rule {ref.name!r} is not defined; expected one of {shown(list(rules))}", ref.place)
        return rules

    def _alternatives(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self._error(f"groups are nested deeper than {MAX_DEPTH}")
        parts = [self._sequence(depth)]
        while self._next_is_bar(depth):
            self._at += 1
            self._space(lines=True)
            parts.append(self._sequence(depth))
        return parts[0] if len(parts) == 1 else Alt(tuple(parts))

    def _next_is_bar(self, depth: int) -> bool:
        """Whether `|` follows, here or, as people write it, at the beginning of the next line."""
        here = self._at
        self._space(lines=True)
        if self._peek() == "|":
            return True
        if not depth:
            self._at = here
        return False

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while True:
            self._space(lines=depth > 0)
            c = self._peek()
            if c == '"':
                part: Node = self._literal()
            elif c == "[":
                part = self._class()
            elif c == ".":
                self._at += 1
                part = Chars(((0, LAST_CHARACTER),))
            elif c == "(":
                self._at += 1
                part = self._alternatives(depth + 1)
                self._expect(")")
            elif c in ("<", "!"):
                raise self._error("tokens by name or number are not supported in GBNF; write the grammar as Lark")
            elif _is_name(c):
                place = self._at
                part = Ref(self._name("a rule"), place)
                self._refs.append(part)
            else:
                return parts[0] if len(parts) == 1 else Seq(tuple(parts))
            parts.append(self._repeated(part, depth))

    def _repeated(self, part: Node, depth: int) -> Node:
        self._space(lines=depth > 0)
        c, place = self._peek(), self._at
        if c not in ("*", "+", "?", "{"):
            return part
        self._at += 1
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(c) or self._counts()
        if max(least, most or 0) > MAX_REPEATS or (most is not None and most < least):
            raise self._error(f"a repetition of {least} to {most}; expected counts in order, up to {MAX_REPEATS}", place)  # fmt: skip
        if self._peek() in ("*", "+", "?", "{"):
            raise self._error("a repetition of a repetition; put the inner one in parentheses")
        return Repeat(part, least, most)

    def _counts(self) -> tuple[int, int | None]:
        match = re.compile(r"\s*([0-9]{1,9})\s*(,\s*([0-9]{1,9})?\s*)?\}").match(self._source, self._at)
        if match is None:
            raise self._error("expected counts of a repetition: {2}, {2,} or {2,5}")
        self._at = match.end()
        least = int(match[1])
        return least, (None if match[3] is None else int(match[3])) if match[2] else least

    def _literal(self) -> Node:
        self._at += 1
        parts: list[Node] = []
        while self._peek() != '"':
            c = self._character()
            parts.append(Chars(((c, c),)))
        self._at += 1
        return parts[0] if len(parts) == 1 else Seq(tuple(parts))

    def _class(self) -> Chars:
        place = self._at
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges = []
        while self._peek() != "]":
            low = high = self._character()
            if self._source[self._at : self._at + 1] == "-" and self._source[self._at + 1 : self._at + 2] not in ("]", ""):  # fmt: skip
                self._at += 1
                high = self._character()
            if high < low:
                raise self._error("a range of characters runs backwards", place)
            ranges.append((low, high))
        self._at += 1
        found = _complement(ranges) if negated else merged(ranges)
        if not found:
            raise self._error("a class without characters", place)
        return Chars(found)

    def _character(self) -> int:
        if self._at >= len(self._source):
            raise self._error("the text ends within a literal or a class")
        c = self._source[self._at]
        self._at += 1
        if c != "\\":
            return ord(c)
        kind = self._peek()
        self._at += 1
        if kind in ESCAPES:
            return ord(ESCAPES[kind])
        digits = self._source[self._at : self._at + HEX_DIGITS.get(kind, 0)]
        if kind not in HEX_DIGITS or not re.fullmatch(f"[0-9a-fA-F]{{{HEX_DIGITS[kind]}}}", digits):
            raise self._error("an unknown escape; known are \\n \\r \\t \\\\ \\\" \\[ \\] \\- \\^ \\xHH \\uHHHH \\UHHHHHHHH", self._at - 2)  # fmt: skip
        self._at += len(digits)
        code = int(digits, 16)
        if code > LAST_CHARACTER or 0xD800 <= code <= 0xDFFF:
            raise self._error(f"U+{code:X} is no character", self._at - len(digits) - 2)
        return code

    def _name(self, what: str) -> str:
        begin = self._at
        while _is_name(self._peek()):
            self._at += 1
        if self._at == begin:
            raise self._error(f"expected {what}")
        return self._source[begin : self._at]

    def _space(self, *, lines: bool) -> None:
        pattern = r"(?:[ \t\r\n]|#[^\r\n]*)*" if lines else r"[ \t]*(?:#[^\r\n]*)?"
        match = re.compile(pattern).match(self._source, self._at)
        self._at = match.end() if match else self._at

    def _expect(self, text: str) -> None:
        if not self._source.startswith(text, self._at):
            raise self._error(f"expected {text}")
        self._at += len(text)

    def _peek(self) -> str:
        return self._source[self._at : self._at + 1]

    def _error(self, message: str, place: int | None = None) -> ConstraintError:
        place = self._at if place is None else place
        before = self._source[:place]
        line, column = before.count("\n") + 1, place - (before.rfind("\n") + 1) + 1
        found = shown(self._source[place : place + 20]) if place < len(self._source) else "the end"
        return ConstraintError(f"gbnf, line {line}, column {column}: found {found}: {message}.")


def _is_name(c: str) -> bool:
    return len(c) == 1 and c.isascii() and (c.isalnum() or c in "-_")


def merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same characters as sorted, disjoint ranges."""
    out: list[Range] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(high, out[-1][1]))
        else:
            out.append((low, high))
    return tuple(out)


def _complement(ranges: Iterable[Range]) -> tuple[Range, ...]:
    out = []
    begin = 0
    for low, high in merged(ranges):
        if low > begin:
            out.append((begin, low - 1))
        begin = high + 1
    return (*out, (begin, LAST_CHARACTER)) if begin <= LAST_CHARACTER else tuple(out)
