"""Finding special tokens in a text before it is tokenized: the longest first, as llama.cpp does."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SPACES = " \t\n\v\f\r"


@dataclass(frozen=True)
class Strip:
    """Tokens that swallow the blanks before (left) or behind (right) them."""

    left: frozenset[int] = frozenset()
    right: frozenset[int] = frozenset()


class SpecialMatcher:
    """Cuts texts at the tokens of one set."""

    def __init__(self, tokens: Sequence[str], ids: Iterable[int], strip: Strip | None = None) -> None:
        self._ids = {tokens[i]: i for i in ids if tokens[i]}
        self._strip = strip or Strip()
        lengths: dict[str, set[int]] = defaultdict(set)
        for text in self._ids:
            lengths[text[:2]].add(len(text))
        self._lengths = {head: sorted(n) for head, n in lengths.items()}
        heads = sorted(self._lengths, key=len, reverse=True)
        self._heads = re.compile(f"(?=({'|'.join(map(re.escape, heads))}))", re.DOTALL) if heads else None

    def split(self, text: str) -> list[str | int]:
        """The text as pieces of text and ids of special tokens, in order; blanks that a token swallows are left out."""
        found = self._occurrences(text)
        if not found:
            return [text] if text else []
        taken = bytearray(len(text))  # 1: part of a special token, or swallowed by one
        hits: list[tuple[int, int, int]] = []  # start, end, id
        for special in sorted(found, key=lambda t: len(t.encode("utf-8", "surrogateescape")), reverse=True):
            self._take(text, special, found[special], taken, hits)
        out: list[str | int] = []
        at = 0
        for start, end, i in sorted(hits):
            out += self._free(text, at, start, taken)
            out.append(i)
            at = end
        return out + self._free(text, at, len(text), taken)

    def _occurrences(self, text: str) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        if self._heads is None:
            return found
        for match in self._heads.finditer(text):
            at = match.start()
            for head in {match[1], match[1][:1]}:
                for n in self._lengths.get(head, ()):
                    candidate = text[at : at + n]
                    if candidate in self._ids:
                        found[candidate].append(at)
        return found

    def _take(
        self, text: str, special: str, starts: list[int], taken: bytearray, hits: list[tuple[int, int, int]]
    ) -> None:
        i, n = self._ids[special], len(special)
        for start in starts:
            end = start + n
            if taken.find(1, start, end) >= 0:
                continue
            taken[start:end] = b"\1" * n
            hits.append((start, end, i))
            if i in self._strip.right:
                while end < len(text) and text[end] in _SPACES and not taken[end]:
                    taken[end] = 1
                    end += 1
            if i in self._strip.left:
                while start > 0 and text[start - 1] in _SPACES and not taken[start - 1]:
                    start -= 1
                    taken[start] = 1

    @staticmethod
    def _free(text: str, start: int, end: int, taken: bytearray) -> list[str | int]:
        while start < end and taken[start]:
            start += 1
        while end > start and taken[end - 1]:
            end -= 1
        return [text[start:end]] if end > start else []
