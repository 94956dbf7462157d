"""How models write calls: JSON objects, a name and then JSON, XML. One class a form; its rows are in `families`.

`body` reads a call behind its opening mark: True once there is one. Where it is False nothing was called, what was read
is in `answer.held`, and what follows is read on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from qtransformers.serve.tools.answer import MAX_NAME, Answer
from qtransformers.serve.tools.reader import Marks, Step
from qtransformers.serve.tools.schemas import as_json, is_text, properties

NAME_KEYS = ("name", "tool_name", "function_name")
ARGUMENT_KEYS = ("arguments", "parameters", "args")
_BRACE = frozenset("{")
_BARE_KEY = re.compile(r"([{,]\s*)([\w.$-]+)\s*:")


class Form(Protocol):
    """How a call is written between its marks."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Marks within a call."""

    def body(self, answer: Answer) -> Step[bool]:
        """Read one call, or several."""


@dataclass(frozen=True)
class Json:
    """`{"name": ..., "arguments": {...}}`, or a list of them. `bare`: without a mark, so only what cannot be anything else."""

    bare: bool = False
    keyed: bool = False  # {"the name": {arguments}}
    texts: tuple[str, ...] = ()

    def body(self, answer: Answer) -> Step[bool]:
        """One object, or several with commas, semicolons or line ends between, in brackets or without."""
        r, some = answer.reader, False
        yield from r.space(answer.hold)
        if (yield from r.peek()) == "[":
            answer.hold(r.take(1))
            yield from r.space(answer.hold)
        while (yield from r.peek()) == "{":
            if not (yield from (self._keyed(answer) if self.keyed else self._object(answer))):
                return False
            some = True
            yield from r.space(answer.hold, also="}],;")
        return some

    def _object(self, answer: Answer, nested: bool = False) -> Step[bool]:
        r = answer.reader
        answer.hold(r.take(1))
        name, early, called = "", [""], False
        while True:
            yield from r.space(answer.hold)
            mark = yield from r.peek()
            if mark != '"':
                break
            key: list[str] = []
            if not (yield from _string(answer, key)) or not (yield from _colon(answer)):
                return called
            mark, text = (yield from r.peek()), _text_of(key)
            if text in NAME_KEYS and not name and mark == '"':
                said: list[str] = []
                if not (yield from _string(answer, said)):
                    return False
                name = _text_of(said)
                if not answer.allows(name, known=self.bare):
                    return False
            elif text in ARGUMENT_KEYS and name and not called and (mark == "{" or not self.bare):
                yield from _arguments(answer, name, mark)
                called = True
            elif text == "function" and mark == "{" and not nested and not called:
                if not (yield from self._object(answer, nested=True)):
                    return False
                called = True
                yield from r.space(answer.hold, also="}")
            else:
                if text in ARGUMENT_KEYS and not called:
                    early.clear()
                if not (yield from r.value(_both(answer, early) if early != [""] else answer.hold)):
                    return called
            yield from r.space(answer.hold)
            mark = yield from r.peek()
            if mark != ",":
                break
            answer.hold(r.take(1))
        if called or mark != "}" or not name or (self.bare and early == [""]):
            return called
        answer.call(name)
        answer.arguments(_repaired("".join(early)))
        return True

    def _keyed(self, answer: Answer) -> Step[bool]:
        r = answer.reader
        answer.hold(r.take(1))
        yield from r.space(answer.hold)
        key: list[str] = []
        if (yield from r.peek()) != '"' or not (yield from _string(answer, key)) or not (yield from _colon(answer)):
            return False
        name = _text_of(key)
        mark = yield from r.peek()
        if not answer.allows(name) or mark != "{":
            return False
        yield from _arguments(answer, name, mark)
        return True


@dataclass(frozen=True)
class Named:
    """A name, a mark, and the arguments as JSON. `header` finds `name`, and `id` where there is one, in what precedes the mark."""

    header: re.Pattern[str]
    marks: tuple[str, ...] = ("{",)  # between name and arguments, if only the brace they begin with
    other: Json | None = None  # how it goes on where a bracket comes at once
    within: tuple[str, ...] = ()  # marks in the header

    @property
    def texts(self) -> tuple[str, ...]:
        """Marks within a call."""
        return (*self.within, *self.marks)

    def body(self, answer: Answer) -> Step[bool]:
        """One call."""
        r = answer.reader
        if self.other is not None:
            yield from r.space(answer.hold)
            if (yield from r.peek()) in ("{", "["):
                return (yield from self.other.body(answer))
        header: list[str] = []
        found = yield from r.until(Marks(self.marks), _both(answer, header), limit=2 * MAX_NAME, kept=_BRACE)
        match = self.header.fullmatch("".join(header))
        answer.hold("" if found in _BRACE else found)
        if not found or not match or not answer.allows(match["name"]):
            return False
        yield from r.space(answer.hold)
        yield from _arguments(answer, match["name"], (yield from r.peek()), match.groupdict().get("id") or "")
        return True


@dataclass(frozen=True)
class Xml:
    """A name, and each argument between marks. Texts stand as they are; other values are JSON."""

    name_ends: tuple[str, ...]  # behind the name; those that belong to what follows are in `kept`, too
    key: str  # before the name of an argument
    key_end: str
    value_end: str
    value: str = ""  # before its value, where anything but `key_end` is
    lines: bool = False  # a line end before and one after a value are framing
    kept: frozenset[str] = frozenset()
    marks: Mapping[str, Marks] = field(init=False, default_factory=dict)

    @property
    def texts(self) -> tuple[str, ...]:
        """Marks within a call."""
        return (*self.name_ends, self.key, self.key_end, self.value, self.value_end)

    def __post_init__(self) -> None:
        texts = {"name": self.name_ends, "key": (self.key,), "key_end": (self.key_end,)}
        texts |= {"value": (self.value,), "value_end": (self.value_end,)}
        object.__setattr__(self, "marks", {name: Marks(given) for name, given in texts.items()})

    def body(self, answer: Answer) -> Step[bool]:
        """One call."""
        r = answer.reader
        header: list[str] = []
        end = yield from r.until(self.marks["name"], _both(answer, header), limit=MAX_NAME, kept=self.kept)
        answer.hold("" if end in self.kept else end)
        name = "".join(header).strip()
        if not end or not answer.allows(name):
            return False
        known = properties(answer.tools.get(name))
        answer.call(name)
        answer.arguments("{")
        comma = ""
        while True:
            yield from r.space(answer.hold)
            if not (yield from r.mark(self.marks["key"])):
                break
            header = []
            if not (yield from r.until(self.marks["key_end"], header.append, limit=4 * MAX_NAME)):
                answer.arguments("".join(header))  # nothing is left out
                return True
            if self.value:
                yield from r.space(answer.hold)
                yield from r.mark(self.marks["value"])
            key, *said = "".join(header).strip().split('"')  # key" string="true
            answer.arguments(comma + json.dumps(key, ensure_ascii=False) + ": ")
            comma = ", "
            schema = {"type": "string"} if "true" in said else known.get(key)
            if not (yield from self._value(answer, schema)):
                return True
        if (yield from r.peek()):  # else the answer was cut off, and so are the arguments
            answer.arguments("}")
        return True

    def _value(self, answer: Answer, schema: Any) -> Step[bool]:
        r = answer.reader
        if is_text(schema):
            text = _Text(answer, self.lines)
            answer.arguments('"')
            if not (yield from r.until(self.marks["value_end"], text.add)):
                text.rest()
                return False
            answer.arguments('"')
            return True
        parts: list[str] = []
        ended = yield from r.until(self.marks["value_end"], parts.append)
        value = "".join(parts)
        if self.lines:
            value = value.removeprefix("\n").removesuffix("\n")
        answer.arguments(as_json(value, schema) if ended else json.dumps(value, ensure_ascii=False)[:-1])
        return bool(ended)


@dataclass(frozen=True)
class Quoted:
    """`call:name{key:<|"|>text<|"|>,other:1}`, as Gemma 4 writes calls: JSON with bare keys, and a mark for quotes."""

    close: str
    quote: str = '<|"|>'

    @property
    def texts(self) -> tuple[str, ...]:
        """Marks within a call."""
        return (self.quote,)

    def body(self, answer: Answer) -> Step[bool]:
        """One call, once it is complete."""
        r, head, rest = answer.reader, list[str](), list[str]()
        if not (yield from r.until(Marks(["{"]), _both(answer, head), limit=MAX_NAME, kept=_BRACE)):
            return False
        match = re.fullmatch(r"\s*call:([\w.:/-]+)\s*", "".join(head))
        if match is None or not answer.allows(match[1]):
            return False
        if not (yield from r.until(Marks([self.close]), _both(answer, rest), kept=frozenset([self.close]))):
            return False
        arguments = self._json("".join(rest).strip())
        if arguments is None:
            return False
        answer.call(match[1])
        answer.arguments(arguments)
        return True

    def _json(self, text: str) -> str | None:
        parts = text.split(self.quote)
        parts[::2] = [_BARE_KEY.sub(r'\1"\2":', part) for part in parts[::2]]
        parts[1::2] = [json.dumps(part, ensure_ascii=False) for part in parts[1::2]]
        try:
            found = json.loads("".join(parts))
        except (ValueError, RecursionError):
            return None
        return json.dumps(found, ensure_ascii=False) if isinstance(found, dict) else None


class _Text:
    """A text on its way into a JSON string, without the line ends around it."""

    def __init__(self, answer: Answer, lines: bool) -> None:
        self._answer = answer
        self._lines = lines
        self._first = lines
        self._line_end = ""

    def add(self, text: str) -> None:
        """More of it."""
        if self._first:
            self._first = False
            text = text.removeprefix("\n")
        if self._lines and text:
            text = self._line_end + text
            self._line_end = "\n" if text[-1] == "\n" else ""
            text = text.removesuffix("\n")
        self._answer.arguments(json.dumps(text, ensure_ascii=False)[1:-1])

    def rest(self) -> None:
        """It was cut off: what was held back belongs to it."""
        self._answer.arguments(json.dumps(self._line_end)[1:-1])


def _both(answer: Answer, parts: list[str]) -> Any:
    def sink(text: str) -> None:
        answer.hold(text)
        parts.append(text)

    return sink


def _string(answer: Answer, parts: list[str]) -> Step[bool]:
    return (yield from answer.reader.string(_both(answer, parts), limit=MAX_NAME))


def _colon(answer: Answer) -> Step[bool]:
    r = answer.reader
    yield from r.space(answer.hold)
    if (yield from r.peek()) != ":":
        return False
    answer.hold(r.take(1))
    yield from r.space(answer.hold)
    return True


def _arguments(answer: Answer, name: str, mark: str, id: str = "") -> Step[None]:
    """The arguments of a call that begins with them: an object, or a text that holds one."""
    r = answer.reader
    answer.call(name, id)
    if mark == "{":
        yield from r.value(answer.arguments, answer.argument_text)
    elif mark:
        parts: list[str] = []
        yield from r.value(parts.append)
        answer.arguments(_repaired("".join(parts)))


def _text_of(parts: list[str]) -> str:
    try:
        return str(json.loads("".join(parts), strict=False))
    except ValueError:
        return ""


def _repaired(text: str) -> str:
    """Arguments as JSON text: an object that a text holds, none for nothing, control characters in texts escaped."""
    if not text.strip() or text == "null":
        return "{}"
    try:
        value = json.loads(text, strict=False)
        inner = json.loads(value, strict=False) if isinstance(value, str) else value
        return json.dumps(inner, ensure_ascii=False) if inner != value or "\n" in text else text
    except (ValueError, RecursionError):
        return text
