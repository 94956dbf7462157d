"""Whether the end of a text is seen at its last character: automata of regular expressions."""

from __future__ import annotations

from qtransformers.constrain.gbnf import Alt, Chars, Node, Range, Ref, Seq

MAX_POSITIONS = 400  # of a lexeme that is examined


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
