"""The state of one answer while it is parsed: what is read, what is held back, what is known."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qtransformers.serve.tools.events import Arguments, CallStart, Content, Event, Reasoning
from qtransformers.serve.tools.reader import Marks, Reader

MAX_NAME = 256  # characters of a tool's name, and of what stands around it
NAME = re.compile(r"[\w.:/-]{1,256}")
_CONTROLS = {i: f"\\u{i:04x}" for i in range(32)} | {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r"}


class Answer:
    """Turns what parsers find into events. Blanks around calls and thoughts are part of neither."""

    def __init__(self, tools: Mapping[str, Mapping[str, Any]], new_id: Callable[[], str]) -> None:
        self.reader = Reader()
        self.tools = tools  # name -> the JSON schema of its parameters
        self.held: list[str] = []  # of what may become a call, and is content where it does not
        self.n_calls = 0
        self._new_id = new_id
        self._events: list[tuple[Event, list[str]]] = []  # without their texts, and the parts of these
        self._blanks: dict[type, list[str]] = {Content: [], Reasoning: []}  # that may turn out to stand at an end
        self._begun: dict[type, bool] = {}
        self._trims: dict[type, bool] = {}  # whether blanks before its first text are framing
        self.thinks = False
        self._called = False  # since the last content

    def content(self, text: str) -> None:
        """Text for the user."""
        self._text(Content, text)

    def reasoning(self, text: str) -> None:
        """Text of a thought."""
        self._text(Reasoning, text)

    def begin_thought(self) -> None:
        """What comes is a thought."""
        self.thinks = self._trims[Reasoning] = True
        self._blanks[Reasoning] = ["\n"]

    def end_thought(self) -> None:
        """A thought has ended; blanks around its end are framing."""
        self.thinks = False
        self._blanks[Reasoning] = []
        self._trims[Content] = True

    def hold(self, text: str) -> None:
        """What may become a call."""
        self.held.append(text)

    def give_back(self) -> None:
        """It was none."""
        self.content("".join(self.held))
        self.held.clear()

    def allows(self, name: str, known: bool = False) -> bool:
        """Whether `name` can be a tool's; `known`: whether it is one of those that were offered."""
        return name in self.tools or (not known and NAME.fullmatch(name) is not None)

    def call(self, name: str, id: str = "") -> int:
        """A call begins: its index. What is held was its framing."""
        self.held.clear()
        self._trims[Content] = self._called = True
        self._events.append((CallStart(self.n_calls, id or self._new_id(), name), []))
        self.n_calls += 1
        return self.n_calls - 1

    def arguments(self, text: str) -> None:
        """More of the arguments of the last call."""
        self._add(Arguments(self.n_calls - 1, ""), text)

    def argument_text(self, text: str) -> None:
        """The same, of what stands between quotes: control characters, which JSON allows nobody there, are escaped."""
        self.arguments(text.translate(_CONTROLS))

    def cut(self, marks: Marks) -> None:
        """The text ends here; half of one of `marks` behind a call is framing, not text."""
        rest = ("".join(self.held) + self.reader.rest).strip()
        if self._called and rest and marks.unfinished(rest):
            self.held.clear()
            self.reader.take(len(self.reader.rest))

    def finish(self) -> None:
        """The answer is over."""
        self.give_back()
        if not self._called:
            self._show(Content)

    def drain(self) -> list[Event]:
        """The events since the last time."""
        events = [e if isinstance(e, CallStart) else replace(e, text="".join(parts)) for e, parts in self._events]
        self._events.clear()
        return events

    def _text(self, kind: type[Content | Reasoning], text: str) -> None:
        bare = text.rstrip()
        if bare:
            first = not self._begun.get(kind) and self._trims.get(kind, False)
            self._show(kind)
            self._add(kind(""), bare.lstrip() if first else bare)
            self._begun[kind] = True
            self._called = self._called and kind is not Content
        if len(bare) < len(text):
            self._blanks[kind].append(text[len(bare) :])

    def _show(self, kind: type[Content | Reasoning]) -> None:
        """The blanks before a text, unless it is the first after a thought or a call."""
        blanks = "".join(self._blanks[kind])
        self._blanks[kind] = []
        if blanks and (self._begun.get(kind) or not self._trims.get(kind)):
            self._add(kind(""), blanks)

    def _add(self, event: Event, text: str) -> None:
        if not self._events or self._events[-1][0] != event:
            self._events.append((event, []))
        self._events[-1][1].append(text)
