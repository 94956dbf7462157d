"""Reading a text that is still being written.

Parsers are generators: they read as if the whole text lay before them, and yield where it has not come yet. What they
decide depends on the text alone, never on how it was cut. What is left unread is never longer than a few marks, so the
work is proportional to the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from functools import cached_property
from typing import TypeVar

T = TypeVar("T")
Step = Generator[None, None, T]  # yields where more text is needed
Sink = Callable[[str], object]

_STRUCTURE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')
_SCALAR_END = re.compile(r'[\s,:"{}\[\]<]')
_NO_SPACE = re.compile(r"\S")
_SCALAR_STARTS = frozenset("-0123456789tfnTFN")


class Marks:
    """Texts that stand for something; none may be part of another unless it begins it."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = sorted({t for t in texts if t}, key=len, reverse=True)
        self.longest = len(self.texts[0]) if self.texts else 0

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")

    @cached_property
    def _firsts(self) -> re.Pattern[str]:
        return re.compile(
            "[" + "".join(re.escape(c) for c in {t[0] for t in self.texts}) + "]" if self.texts else r"(?!)"
        )

    def find(self, text: str, at: int) -> tuple[int, int]:
        """Where the first begins and ends; where there is none, the place from which one might begin, twice."""
        found = self._pattern.search(text, at)
        if found and not self.unfinished(text[found.start() : found.start() + self.longest]):
            return found.span()
        end = found.start() if found else len(text)
        for first in self._firsts.finditer(text, max(at, end - self.longest + 1)):
            if self.unfinished(text[first.start() :]):
                return first.start(), first.start()
        return end, end

    def unfinished(self, text: str) -> bool:
        """Whether `text` may become a mark that is longer."""
        return any(len(text) < len(t) and t.startswith(text) for t in self.texts)

    def begins(self, text: str) -> str:
        """The longest mark that `text` begins with."""
        return next((t for t in self.texts if text.startswith(t)), "")


class Reader:
    """The text that has come and is not read yet."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._ended = False

    def add(self, text: str) -> None:
        """More of the text."""
        self._text = self._text[self._at :] + text
        self._at = 0

    def end(self) -> None:
        """There is no more."""
        self._ended = True

    @property
    def rest(self) -> str:
        """What has come and is not read."""
        return self._text[self._at :]

    def more(self) -> Step[bool]:
        """Wait for more; False where there is none."""
        if self._ended:
            return False
        yield
        return True

    def take(self, n: int) -> str:
        """The next `n` characters, which `peek` has seen."""
        self._at += n
        return self._text[self._at - n : self._at]

    def peek(self, n: int = 1) -> Step[str]:
        """The next `n` characters; fewer at the end."""
        while len(self._text) - self._at < n and (yield from self.more()):
            pass
        return self._text[self._at : self._at + n]

    def mark(self, marks: Marks) -> Step[str]:
        """The mark that comes next, read; "" where none does."""
        while True:
            ahead = self._text[self._at : self._at + marks.longest]
            if not marks.unfinished(ahead) or not (yield from self.more()):
                found = marks.begins(ahead)
                self._at += len(found)
                return found

    def until(
        self, marks: Marks, sink: Sink, limit: int | None = None, kept: frozenset[str] = frozenset()
    ) -> Step[str]:
        """Give what comes before the next mark to `sink`; the mark, or "" at the end or after `limit` characters.

        The mark is read, too, unless it is one of `kept`.
        """
        while True:
            start, end = marks.find(self._text, self._at)
            n = start - self._at
            if limit is not None and n > limit:
                sink(self.take(limit))
                return ""
            limit = None if limit is None else limit - n
            if n:
                sink(self.take(n))
            if end > start:
                found = self._text[self._at : self._at + end - start]
                return found if found in kept else self.take(len(found))
            if not (yield from self.more()):
                if self._at < len(self._text):  # what might have become a mark
                    sink(self.take(len(self._text) - self._at))
                return ""

    def space(self, sink: Sink, also: str = "") -> Step[None]:
        """Give blanks, and characters of `also`, to `sink`."""
        pattern = re.compile(rf"[^\s{re.escape(also)}]") if also else _NO_SPACE
        while True:
            found = pattern.search(self._text, self._at)
            end = found.start() if found else len(self._text)
            if end > self._at:
                sink(self.take(end - self._at))
            if found or not (yield from self.more()):
                return

    def string(self, sink: Sink, inside: Sink | None = None, limit: int | None = None) -> Step[bool]:
        """A JSON string with its quotes to `sink`, what is between them to `inside`; False where it does not end (within `limit`)."""
        sink(self.take(1))
        inside = inside or sink
        while True:
            found = _IN_STRING.search(self._text, self._at)
            end = found.start() if found else len(self._text)
            if limit is not None:
                limit -= end - self._at
                if limit < 0:
                    return False
            if end > self._at:
                inside(self.take(end - self._at))
            if found and found[0] == '"':
                sink(self.take(1))
                return True
            if found:
                escape = yield from self.peek(2)
                sink(self.take(len(escape)))
            elif not (yield from self.more()):
                return False

    def value(self, sink: Sink, inside: Sink | None = None) -> Step[bool]:
        """One JSON value to `sink`, texts between quotes to `inside`; False where what comes is none, or does not end.

        Only quotes and brackets are looked at.
        """
        first = yield from self.peek()
        if first == '"':
            return (yield from self.string(sink, inside))
        if first not in _SCALAR_STARTS and first not in ("{", "["):
            return False
        if first not in ("{", "["):
            return (yield from self._scalar(sink))
        depth = 0
        while True:
            found = _STRUCTURE.search(self._text, self._at)
            end = found.start() if found else len(self._text)
            if end > self._at:
                sink(self.take(end - self._at))
            if found is None:
                if not (yield from self.more()):
                    return False
            elif found[0] == '"':
                if not (yield from self.string(sink, inside)):
                    return False
            else:
                depth += 1 if found[0] in "{[" else -1
                sink(self.take(1))
                if depth == 0:
                    return True

    def _scalar(self, sink: Sink) -> Step[bool]:
        while True:
            found = _SCALAR_END.search(self._text, self._at)
            end = found.start() if found else len(self._text)
            if end > self._at:
                sink(self.take(end - self._at))
            if found:
                return True
            if not (yield from self.more()):
                return False
