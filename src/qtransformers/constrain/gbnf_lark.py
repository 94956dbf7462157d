"""GBNF, the grammars of llama.cpp, rewritten for llguidance with the same meaning.

GBNF reads characters; llguidance cuts a text into lexemes first, each as long as it can be, and does not go back. So one regular
expression stands for a grammar without recursion, and in others each character is a lexeme, unless a longer one cannot be mistaken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qtransformers.constrain.automaton import MAX_POSITIONS, Positions, prefix_free
from qtransformers.constrain.gbnf import Alt, Chars, Node, Range, Ref, Repeat, Seq, merged, parse

MAX_WRITTEN_DEPTH = 150  # of an expression with its rules written out
MAX_REGEX = 20_000  # characters and classes in one regular expression
MAX_EXAMINED = 400  # lexemes of one grammar
MAX_ROUNDS = 4  # of splitting those that could be mistaken, until all are split
EMPTY = '""'  # in Lark


def to_lark(source: str) -> str:
    """A GBNF grammar as Lark for llguidance; ConstraintError naming line and column of what is wrong."""
    rules = parse(source)
    whole = inlined(Ref("root", 0), rules)
    if whole is not None:
        return f"start: {lexeme(whole)}"
    return _Writer(rules).text()


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
        self._firsts[key] = merged(r for p in positions.first for r in positions.chars[p])
        return lexeme(written)

    def _ends_by_itself(self, node: Node) -> bool:
        written = inlined(node, self._rules, MAX_POSITIONS)
        return written is not None and prefix_free(written)
