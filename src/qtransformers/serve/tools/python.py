"""Calls written as Python: `[f(a=1, b="x"), g()]`. A small reader of literals; nothing is evaluated."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qtransformers.serve.tools.answer import MAX_NAME, Answer
from qtransformers.serve.tools.reader import Marks, Step
from qtransformers.serve.tools.schemas import properties

MAX_DEPTH = 64
_OPEN = Marks(["("])
_BRACKETS = Marks(["(", ")", "[", "]", "{", "}", '"', "'"])
_QUOTES = {q: Marks([q, "\\"]) for q in "\"'"}
_NAME = re.compile(r"[A-Za-z_][\w.]{0,255}")
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])|(?P<name>[A-Za-z_]\w*)"""
    r"""|(?P<text>"[^"\\]*(?:\\.[^"\\]*)*"|'[^'\\]*(?:\\.[^'\\]*)*')|(?P<mark>[][(){},:=]))""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(\n)|(.))", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0"}
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


@dataclass(frozen=True)
class Python:
    """One call or several, in brackets or without. `bare`: without a mark before, so only of tools that are offered."""

    bare: bool = False
    texts: tuple[str, ...] = ()

    def body(self, answer: Answer) -> Step[bool]:
        """Calls with commas, semicolons or line ends between."""
        r, some = answer.reader, False
        yield from r.space(answer.hold)
        if (yield from r.peek()) == "[":
            answer.hold(r.take(1))
        while True:
            yield from r.space(answer.hold, also=",;" if some else "")
            head = yield from r.peek()
            if not (head.isidentifier() and head.isascii()):
                break
            source: list[str] = []

            def both(text: str, source: list[str] = source) -> None:
                answer.hold(text)
                source.append(text)

            if not (yield from r.until(_OPEN, both, limit=MAX_NAME)):
                return some
            both("(")
            if not _NAME.fullmatch("".join(source[:-1])) or not (yield from _closed(answer, both)):
                return some
            calls = _calls("".join(source), answer.tools)
            if not calls or not all(answer.allows(name, known=self.bare) for name, _ in calls):
                return some
            for name, arguments in calls:
                answer.call(name)
                answer.arguments(json.dumps(arguments, ensure_ascii=False))
            some = True
        if some and (yield from r.peek()) == "]":
            answer.hold(r.take(1))
        return some


def _closed(answer: Answer, sink: Any) -> Step[bool]:
    """Read on to the bracket that closes the one just read."""
    r, depth = answer.reader, 1
    while depth:
        mark = yield from r.until(_BRACKETS, sink)
        sink(mark)
        if not mark:
            return False
        if mark in _QUOTES:
            while (found := (yield from r.until(_QUOTES[mark], sink))) == "\\":
                sink(found)
                escaped = yield from r.peek()
                sink(r.take(len(escaped)))
            sink(found)
            if not found:
                return False
        else:
            depth += 1 if mark in "([{" else -1
    return True


def _calls(source: str, tools: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The calls in an expression, `print(f(...))` counting as f; none where it is anything else."""
    try:
        literals = _Literals(source)
        name, arguments = literals.call(tools)
        if literals.at != len(source):
            return []
        if name == "print" and name not in tools and literals.inner:
            return literals.inner
        return [] if literals.inner else [(name, arguments)]
    except (ValueError, RecursionError):
        return []


class _Literals:
    """Python literals, and calls with them, read from the left. ValueError for anything else."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.at = 0
        self.inner: list[tuple[str, dict[str, Any]]] = []  # calls that are arguments

    def call(self, tools: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """name(value, key=value, ...): the values by name; those without stand for the tool's parameters in their order."""
        name = _NAME.match(self._source, self.at)
        if name is None:
            raise ValueError
        self.at = name.end()
        self._expect("(")
        order, found = iter(properties(tools.get(name[0]))), {}
        while not self._skip(")"):
            key, at = self._next(), self.at
            self.at += len(key[0]) if key else 0
            if key and key["name"] and self._skip("="):
                found[key["name"]] = self._value(0)
            elif key and key["name"] and key["name"] not in _WORDS:
                self.at = at + len(key[0]) - len(key["name"])
                self.inner.append(self.call(tools))
            else:
                self.at = at
                found[next(order, f"arg{len(found)}")] = self._value(0)
            if not self._skip(","):
                self._expect(")")
                break
        return name[0], found

    def _value(self, depth: int) -> Any:
        token = self._next()
        if token is None or depth > MAX_DEPTH:
            raise ValueError
        self.at = token.end()
        if token["number"]:
            return _number(token["number"])
        if token["text"]:
            return _unquoted(token["text"])
        if token["name"]:
            if token["name"] not in _WORDS:
                raise ValueError
            return _WORDS[token["name"]]
        if token["mark"] == "{":
            return self._dict(depth + 1)
        if token["mark"] not in ("[", "("):
            raise ValueError
        close, items = {"[": "]", "(": ")"}[token["mark"]], []
        while not self._skip(close):
            items.append(self._value(depth + 1))
            if not self._skip(","):
                self._expect(close)
                break
        return items

    def _dict(self, depth: int) -> dict[str, Any]:
        found = {}
        while not self._skip("}"):
            key = self._value(depth)
            self._expect(":")
            found[key if isinstance(key, str) else json.dumps(key)] = self._value(depth)
            if not self._skip(","):
                self._expect("}")
                break
        return found

    def _next(self) -> re.Match[str] | None:
        return _TOKEN.match(self._source, self.at)

    def _skip(self, mark: str) -> bool:
        token = self._next()
        if token is None or token["mark"] != mark:
            return False
        self.at = token.end()
        return True

    def _expect(self, mark: str) -> None:
        if not self._skip(mark):
            raise ValueError


def _number(text: str) -> int | float:
    text = text.replace("_", "")
    number = float(text)
    if not abs(number) < float("inf"):
        raise ValueError
    return int(text) if re.fullmatch(r"[-+]?\d{1,4000}", text) else number


def _unquoted(text: str) -> str:
    def char(m: re.Match[str]) -> str:
        code = m[1] or m[2] or m[3]
        if code:
            return chr(int(code, 16))
        return "" if m[4] else _ESCAPES.get(m[5], m[5] if m[5] in "\\\"'" else m[0])

    found = _ESCAPE.sub(char, text[1:-1])
    return found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
