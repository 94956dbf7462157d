"""Texts that are looked for in a stream of characters."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable


class Texts:
    """A set of texts to find as characters come. A character costs a binary search or two, however many texts there are."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._known = frozenset(texts)
        self._sorted = sorted(self._known)
        self._firsts = frozenset(t[0] for t in self._known)
        by_last: dict[str, set[int]] = {}
        for t in self._known:
            by_last.setdefault(t[-1], set()).add(len(t))
        self._lengths = {last: sorted(lengths) for last, lengths in by_last.items()}

    def __len__(self) -> int:
        return len(self._known)

    def advance(self, tail: str, char: str) -> str:
        """The longest end of `tail + char` that begins a text, where `tail` is what this gave for all before `char`."""
        if not tail and char not in self._firsts:
            return ""
        tail += char
        while tail and not self._begins(tail):  # each turn takes away what an earlier character had added
            tail = tail[1:]
        return tail

    def endings(self, tail: str) -> list[int]:
        """Lengths of the texts that end with what `advance` gave, rising."""
        return [n for n in self._lengths.get(tail[-1:], ()) if n <= len(tail) and tail[-n:] in self._known]

    def _begins(self, part: str) -> bool:
        i = bisect_left(self._sorted, part)
        return i < len(self._sorted) and self._sorted[i].startswith(part)
