"""Guesses from the text itself: what followed the last time that it went like this."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_CHAIN = 16  # endings of a text whose latest occurrence is kept up; a bound, so that a token takes constant time


class Repeats:
    """The longest end of a growing text that occurred before, by a suffix automaton (Blumer et al., 1985).

    A state stands for endings that occur at the same places; its link leads to the longest shorter ending that occurs at
    more. So the link of the whole text is its longest end with an earlier occurrence. Time and memory are linear.
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens: list[int] = []
        self.length = 0  # of the longest end that occurred before
        self._follows = 0  # the place after that occurrence, the latest one known
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._longest = [0]  # tokens of a state's longest ending
        self._end = [0]  # the place after the latest occurrence known
        self._last = 0
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """The text goes on."""
        self.tokens.append(token)
        nexts, link, longest = self._next, self._link, self._longest
        new = self._add({}, 0, len(self.tokens), len(self.tokens))
        p, self._last = self._last, new
        while p >= 0 and token not in nexts[p]:
            nexts[p][token] = new
            p = link[p]
        if p >= 0:
            q = nexts[p][token]
            link[new] = q if longest[q] == longest[p] + 1 else self._split(p, q, token)
        state = link[new]
        self.length, self._follows = longest[state], self._end[state]
        for _ in range(LONGEST_CHAIN):
            if state <= 0:
                break
            self._end[state] = len(self.tokens)
            state = link[state]

    def guess(self, n: int) -> list[int]:
        """The `n` tokens that followed that occurrence; beyond the end of the text it is taken to go on in the same way."""
        found = self.tokens[self._follows : self._follows + n]
        period = len(self.tokens) - self._follows
        while len(found) < n:
            found.append(found[len(found) - period])
        return found

    def _add(self, nexts: dict[int, int], link: int, longest: int, end: int) -> int:
        self._next.append(nexts)
        self._link.append(link)
        self._longest.append(longest)
        self._end.append(end)
        return len(self._link) - 1

    def _split(self, p: int, q: int, token: int) -> int:
        """A state for those endings of `q` that also occur here: up to the longest of `p`, and `token`."""
        shorter = self._add(self._next[q].copy(), self._link[q], self._longest[p] + 1, self._end[q])
        while p >= 0 and self._next[p].get(token) == q:
            self._next[p][token] = shorter
            p = self._link[p]
        self._link[q] = shorter
        return shorter
