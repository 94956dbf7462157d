"""What an answer turns out to be, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Content:
    """More of the text that is for the user."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call of a tool begins; its arguments follow before the next begins."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class Arguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Event = Content | Reasoning | CallStart | Arguments


@dataclass
class ToolCall:
    """A call as a whole; `arguments` is JSON text, cut off where the answer was."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Message:
    """An answer as a whole."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)


def collect(events: Iterable[Event]) -> Message:
    """The message that events amount to."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    arguments: list[list[str]] = []
    for event in events:
        if isinstance(event, Content):
            content.append(event.text)
        elif isinstance(event, Reasoning):
            reasoning.append(event.text)
        elif isinstance(event, CallStart):
            calls.append(ToolCall(event.id, event.name))
            arguments.append([])
        else:
            arguments[event.index].append(event.text)
    for call, parts in zip(calls, arguments, strict=True):
        call.arguments = "".join(parts)
    return Message("".join(content), "".join(reasoning), calls)
