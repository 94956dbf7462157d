"""The parser of one answer: thoughts, calls, and the text for the user."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from qtransformers.serve.tools.answer import MAX_NAME, Answer
from qtransformers.serve.tools.events import Event, Message, collect
from qtransformers.serve.tools.forms import Form, Json
from qtransformers.serve.tools.reader import Marks

Steps = Generator[None, None, None]


@dataclass(frozen=True)
class Frame:
    """The marks around calls, and the form of a call."""

    form: Form
    open: tuple[str, ...]  # before each call
    close: tuple[str, ...] = ()  # behind each
    begin: tuple[str, ...] = ()  # before the first, where all of them have marks around them
    end: tuple[str, ...] = ()  # behind the last
    wrapped: bool = False  # `open` alone begins nothing: there must be a `begin`
    first: tuple[str, ...] = ()  # a whole answer that begins so may be a call without a mark, read by `first_form`
    first_form: Form | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """All marks, those within calls included."""
        return (*self.begin, *self.open, *self.form.texts, *self.close, *self.end)


@dataclass(frozen=True)
class Thoughts:
    """The marks around what a model thinks."""

    open: tuple[str, ...]
    close: tuple[str, ...]
    answer: tuple[str, ...] = ()  # marks around the rest, which are not shown
    assumed: bool = False  # thinks from the start, without a mark
    then: str = ""  # what stands between the end of a thought and a call


class Parser:
    """Events of an answer, in the order of its text. `feed` it as it comes, in any pieces, then `finish`."""

    def __init__(
        self,
        frame: Frame | None,
        thoughts: Thoughts | None,
        *,
        tools: Mapping[str, Mapping[str, Any]] | None = None,
        thinking: bool = False,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        """`tools`: name -> JSON schema of the parameters. `thinking`: the prompt has opened a thought already."""
        self._answer = Answer(tools or {}, new_id or call_id)
        self._steps = (
            _harmony(self._answer)
            if frame is HARMONY
            else _usual(self._answer, frame if tools else None, thoughts, thinking)
        )
        self._marks = Marks(frame.texts if frame and tools else ())
        self._over = False
        self._advance()

    @property
    def thinks(self) -> bool:
        """Whether what comes next is a thought."""
        return self._answer.thinks

    def feed(self, text: str) -> list[Event]:
        """The events that are certain with this piece."""
        if text and not self._over:
            self._answer.reader.add(text)
            self._advance()
        return self._answer.drain()

    def finish(self) -> list[Event]:
        """The events that are left once no more comes."""
        if not self._over:
            self._answer.cut(self._marks)
            self._answer.reader.end()
            self._advance()
            self._answer.finish()
        return self._answer.drain()

    def whole(self, text: str) -> Message:
        """The message that a whole answer is."""
        return collect([*self.feed(text), *self.finish()])

    def _advance(self) -> None:
        if not self._over and next(self._steps, self) is self:
            self._over = True


def call_id() -> str:
    """An id for a call, as OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"


def short_id() -> str:
    """An id of nine letters and digits, the only ones that Mistral's templates take."""
    return secrets.token_hex(5)[:9]


def _usual(answer: Answer, frame: Frame | None, thoughts: Thoughts | None, thinking: bool) -> Steps:
    r = answer.reader
    open_thought = thoughts.open if thoughts else ()
    hidden = thoughts.answer if thoughts else ()
    begins = () if frame is None else frame.begin + (() if frame.wrapped else frame.open)
    marks = Marks([*open_thought, *hidden, *begins])
    if thoughts and (thinking or thoughts.assumed):
        yield from _thought(answer, thoughts)
    if frame and frame.first:
        yield from _bare(answer, frame)
    while mark := (yield from r.until(marks, answer.content)):
        if thoughts and mark in open_thought:
            yield from _thought(answer, thoughts)
            if frame and frame.first:
                yield from _bare(answer, frame)
        elif frame and mark in begins:
            yield from _calls(answer, frame, mark)


def _thought(answer: Answer, thoughts: Thoughts) -> Steps:
    answer.begin_thought()
    yield from answer.reader.until(Marks(thoughts.close), answer.reasoning)
    answer.end_thought()


def _bare(answer: Answer, frame: Frame) -> Steps:
    """Calls without a mark, at the beginning of an answer."""
    r = answer.reader
    assert frame.first_form is not None
    yield from r.space(answer.content)
    if (yield from r.peek()) in frame.first:
        if (yield from frame.first_form.body(answer)):
            yield from r.space(answer.hold, also="]};,")
            answer.held.clear()
        else:
            answer.give_back()


def _calls(answer: Answer, frame: Frame, mark: str) -> Steps:
    """Calls behind `mark`, as many as there are."""
    r = answer.reader
    opens, ends = Marks(frame.open), Marks([*frame.open, *frame.close, *frame.end])
    answer.hold(mark)
    if mark in frame.begin and mark not in frame.open:
        yield from r.space(answer.hold)
        found = yield from r.mark(opens)
        answer.hold(found)
        if not found:
            answer.give_back()
            return
    while (yield from frame.form.body(answer)):
        answer.held.clear()
        while True:
            yield from r.space(answer.hold)
            found = yield from r.mark(ends)
            if not found or found in frame.open:
                break
            answer.held.clear()
        if not found:
            break
        answer.hold(found)
    answer.give_back()


HARMONY = Frame(
    Json(), ("<|start|>", "<|channel|>"), ("<|end|>", "<|call|>", "<|return|>", "<|message|>", "<|constrain|>")
)
_HEADS = Marks(["<|start|>", "<|channel|>"])
_HEAD_END = Marks(["<|message|>"])
_ENDS = Marks(["<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>"])
_NEXT = frozenset(["<|start|>", "<|channel|>"])


def _harmony(answer: Answer) -> Steps:
    """gpt-oss: messages in channels. Analysis is thought, what goes to a function is a call, all else is for the user."""
    r = answer.reader
    while mark := (yield from r.until(_HEADS, answer.content)):
        head = [mark]
        answer.hold(mark)

        def both(text: str, head: list[str] = head) -> None:
            answer.hold(text)
            head.append(text)

        if not (yield from r.until(_HEAD_END, both, limit=2 * MAX_NAME)):
            answer.give_back()
            continue
        found = "".join(head)
        to = re.search(r"\bto=(?:functions\.)?([\w.:/-]{1,256})", found)
        channel = re.search(r"<\|channel\|>\s*(\w+)", found)
        answer.held.clear()
        if to and answer.tools:
            answer.call(to[1])
            yield from r.space(answer.hold)
            answer.held.clear()
            yield from r.until(_ENDS, answer.arguments, kept=_NEXT)
        elif channel and channel[1] == "analysis":
            answer.begin_thought()
            yield from r.until(_ENDS, answer.reasoning, kept=_NEXT)
            answer.end_thought()
        else:
            yield from r.until(_ENDS, answer.content, kept=_NEXT)
