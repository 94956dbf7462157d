"""GBNF, the grammars of llama.cpp, rewritten for llguidance with the same meaning.

GBNF reads characters; llguidance cuts a text into lexemes first, each as long as it can be, and does not go back. So one regular
expression stands for a grammar without recursion, and in others each character is a lexeme, unless a longer one cannot be mistaken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from qtransformers.checks import shown
from qtransformers.errors import ConstraintError

MAX_DEPTH = 20  # groups within groups; llguidance bears little more
MAX_WRITTEN_DEPTH = 150  # of an expression with its rules written out
MAX_REPEATS = 2000
MAX_REGEX = 20_000  # characters and classes in one regular expression
MAX_POSITIONS = 400  # of a lexeme that is examined
MAX_EXAMINED = 400  # lexemes of one grammar
MAX_ROUNDS = 4  # of splitting those that could be mistaken, until all are split
LAST_CHARACTER = 0x10FFFF
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-", "^": "^"}
EMPTY = '""'  # in Lark
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


def to_lark(source: str) -> str:
    """A GBNF grammar as Lark for llguidance; ConstraintError naming line and column of what is wrong."""
    rules = parse(source)
    whole = inlined(Ref("root", 0), rules)
    if whole is not None:
        return f"start: {lexeme(whole)}"
    return _Writer(rules).text()


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
        found = _complement(ranges) if negated else _merged(ranges)
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


def _merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
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
    for low, high in _merged(ranges):
        if low > begin:
            out.append((begin, low - 1))
        begin = high + 1
    return (*out, (begin, LAST_CHARACTER)) if begin <= LAST_CHARACTER else tuple(out)


def inlined(node: Node, rules: Mapping[str, Node], limit: int = MAX_REGEX) -> Node | None:
    """`node` with its rules written out; None where one contains itself, or there are more than `limit` characters."""
    left = limit
    known: dict[str, tuple[Node, int] | None] = {}

    def go(node: Node, within: tuple[str, ...], depth: int) -> Node | None:
        nonlocal left
        if depth > MAX_WRITTEN_DEPTH:
            return None
        if isinstance(node, Chars):
            left -= 1
            return node if left >= 0 else None
        if isinstance(node, Ref):
            if node.name in within:
                return None
            if node.name not in known:
                before = left
                body = go(rules[node.name], (*within, node.name), depth + 1)
                known[node.name] = (body, before - left) if body is not None else None
                return body
            found = known[node.name]
            left -= found[1] if found else 0
            return found[0] if found and left >= 0 else None
        if isinstance(node, Repeat):
            part = go(node.part, within, depth + 1)
            return None if part is None else Repeat(part, node.least, node.most)
        parts = []
        for each in node.parts:
            part = go(each, within, depth + 1)
            if part is None:
                return None
            parts.append(part)
        return type(node)(tuple(parts))

    return go(node, (), 0)


def lexeme(node: Node) -> str:
    """A node without rules as a regular expression between slashes."""
    return f"/{_regex(node)}/"


def _regex(node: Node) -> str:
    if isinstance(node, Chars):
        return "[" + "".join(f"\\x{{{a:x}}}-\\x{{{b:x}}}" for a, b in node.ranges) + "]"
    if isinstance(node, Repeat):
        return f"(?:{_regex(node.part)}){_count(node)}"
    if isinstance(node, Ref):
        raise TypeError(f"rule {node.name} is not written out")
    parts = [_regex(part) for part in node.parts]
    return "".join(parts) if isinstance(node, Seq) else f"(?:{'|'.join(parts)})"


def _count(node: Repeat) -> str:
    return f"{{{node.least},{'' if node.most is None else node.most}}}"


class _Writer:
    """Rules as Lark. A lexeme is one character, or a run of which the first tells that it is this one, and the last that it ends."""

    def __init__(self, rules: Mapping[str, Node]) -> None:
        self._rules = rules
        self._names = {name: f"r{i}" for i, name in enumerate(rules)}
        self._firsts: dict[str, tuple[Range, ...]] = {}  # of every lexeme written
        self._used: list[str] = []  # rules that the text names
        self._runs = True
        self._split: set[str] = set()  # runs that could be mistaken
        self._examined: dict[Node, bool] = {}

    def text(self) -> str:
        for rounds_left in range(MAX_ROUNDS, -1, -1):
            self._runs = rounds_left > 0
            self._firsts = {}
            self._used = ["root"]
            lines = []
            for name in self._used:  # grows as rules name others
                lines.append(f"{self._names[name]}: {self._node(self._rules[name]) or EMPTY}")
            mistaken = set(self._mistaken())
            if not mistaken:
                break
            self._split |= mistaken
        return "\n".join([f"start: {self._names['root']}", *lines])

    def _mistaken(self) -> Iterator[str]:
        """Runs whose first character may begin another lexeme too."""
        ends = sorted((low, high, name) for name, ranges in self._firsts.items() for low, high in ranges)
        furthest, owner = -1, ""
        for low, high, name in ends:
            if low <= furthest and name != owner:
                yield from (n for n in (name, owner) if n.startswith("//"))
            if high > furthest:
                furthest, owner = high, name

    def _node(self, node: Node) -> str:
        run = self._run(node)
        if run:
            return run
        if isinstance(node, Ref):
            if node.name not in self._used:
                self._used.append(node.name)
            return self._names[node.name]
        if isinstance(node, Chars):
            text = lexeme(node)
            self._firsts[text] = node.ranges
            return text
        if isinstance(node, Repeat):
            inner = self._node(node.part) if node.most != 0 else ""
            group = inner if isinstance(node.part, Alt) or not inner else f"({inner})"
            return f"{group}{_count(node)}" if inner else ""
        if isinstance(node, Alt):
            return f"({' | '.join(self._node(part) or EMPTY for part in node.parts)})"
        return self._sequence(node.parts)

    def _sequence(self, parts: tuple[Node, ...]) -> str:
        out: list[str] = []
        i = 0
        while i < len(parts):
            if not self._runs or len(self._examined) >= MAX_EXAMINED:
                return " ".join(filter(None, (*out, *map(self._node, parts[i:]))))
            end = next((k for k in range(i, len(parts)) if isinstance(parts[k], Ref)), len(parts))
            for j in range(min(end, i + 16), i + 1, -1):  # longest first, and never across a rule
                run = self._run(Seq(parts[i:j])) if j - i < len(parts) else ""
                if run:
                    break
            else:
                j, run = i + 1, self._node(parts[i])
            out.append(run)
            i = j
        return " ".join(filter(None, out))

    def _run(self, node: Node) -> str:
        """The node as one lexeme, or "" where it could be mistaken."""
        if not self._runs or isinstance(node, (Chars, Ref)):
            return ""
        if isinstance(node, Seq) and any(isinstance(part, Ref) for part in node.parts):
            return ""
        if node not in self._examined:
            self._examined[node] = len(self._examined) < MAX_EXAMINED and self._ends_by_itself(node)
        if not self._examined[node]:
            return ""
        written = inlined(node, self._rules, MAX_POSITIONS)
        assert written is not None
        key = "//" + lexeme(written)
        if key in self._split:
            return ""
        positions = Positions(written)
        self._firsts[key] = _merged(r for p in positions.first for r in positions.chars[p])
        return lexeme(written)

    def _ends_by_itself(self, node: Node) -> bool:
        written = inlined(node, self._rules, MAX_POSITIONS)
        return written is not None and prefix_free(written)


class Positions:
    """The automaton of Glushkov: characters in a regular expression, which come first, last, and after which."""

    def __init__(self, node: Node) -> None:
        self.chars: list[tuple[Range, ...]] = []
        self.follow: list[set[int]] = []
        self.nullable, self.first, self.last = self._add(node)

    @property
    def too_many(self) -> bool:
        """Whether there are more than are examined; what is known of them is incomplete then."""
        return len(self.chars) > MAX_POSITIONS

    def _add(self, node: Node) -> tuple[bool, set[int], set[int]]:
        if self.too_many:
            return True, set(), set()
        if isinstance(node, Chars):
            self.chars.append(node.ranges)
            self.follow.append(set())
            here = {len(self.chars) - 1}
            return False, here, here
        if isinstance(node, Alt):
            found = [self._add(part) for part in node.parts]
            return any(n for n, _, _ in found), set().union(*(f for _, f, _ in found)), set().union(*(t for _, _, t in found))  # fmt: skip
        if isinstance(node, Seq):
            return self._chain(node.parts)
        if isinstance(node, Ref):
            raise TypeError(f"rule {node.name} is not written out")
        if node.most is None:
            copies = (*[node.part] * max(node.least - 1, 0),)
            nullable, first, last = self._add(node.part)
            for p in last:
                self.follow[p] |= first
            before = self._chain(copies)
            return self._joined(before, (nullable or not node.least, first, last))
        optional = Alt((node.part, Seq(())))
        return self._chain((*[node.part] * node.least, *[optional] * (node.most - node.least)))

    def _chain(self, parts: tuple[Node, ...]) -> tuple[bool, set[int], set[int]]:
        found: tuple[bool, set[int], set[int]] = (True, set(), set())
        for part in parts:
            if self.too_many:
                break
            found = self._joined(found, self._add(part))
        return found

    def _joined(
        self, a: tuple[bool, set[int], set[int]], b: tuple[bool, set[int], set[int]]
    ) -> tuple[bool, set[int], set[int]]:
        for p in a[2]:
            self.follow[p] |= b[1]
        return a[0] and b[0], a[1] | b[1] if a[0] else a[1], a[2] | b[2] if b[0] else b[2]


def prefix_free(node: Node) -> bool:
    """Whether no text of the expression goes on to another one, so that its end is seen at its last character.

    False too where that would take long to find out.
    """
    automaton = Positions(node)
    if automaton.too_many or automaton.nullable:
        return False
    seen: set[frozenset[int]] = set()
    open_states = [frozenset(automaton.first)]  # the positions that may come next
    while open_states:
        state = open_states.pop()
        if state in seen:
            continue
        seen.add(state)
        if len(seen) > MAX_POSITIONS:
            return False
        for c in {low for p in state for low, _ in automaton.chars[p]} | {high + 1 for p in state for _, high in automaton.chars[p]}:  # fmt: skip
            taken = [p for p in state if any(low <= c <= high for low, high in automaton.chars[p])]
            after = frozenset().union(*(automaton.follow[p] for p in taken))
            if after and not automaton.last.isdisjoint(taken):
                return False
            if after:
                open_states.append(after)
    return True
