"""The text of an answer: nothing is shown that may turn out to be the beginning of a stop text or of a banned one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from qtransformers.generate.stops import Texts


class Decoder(Protocol):
    """Token ids in, whole UTF-8 characters out."""

    def push(self, token: int, /) -> str:
        """Text that is complete with this token."""

    def finish(self) -> str:
        """What is still held back, incomplete bytes as U+FFFD."""

    @property
    def state(self) -> Any:
        """What `restore` needs to come back to this point."""

    def restore(self, state: Any, /) -> None:
        """Forget what was pushed since `state`."""


class Found(NamedTuple):
    """What a token brought."""

    text: str = ""  # that may be shown now
    stopped: bool = False  # by a stop text, which is not shown
    back: int = 0  # so many tokens, this one included, are taken back, for a banned text began with the first of them


class _Mark(NamedTuple):
    """Where a token's text begins in what is held back, and how things stood before it."""

    at: int
    decoder: Any
    stop: str
    banned: str


class AnswerText:
    """Tokens in, text that is safe to show out.

    The stop text that is complete first counts, so that it does not matter how the text came in pieces; of several that
    end alike the longest. Of banned texts that end alike the shortest counts: it takes back least. Where one began in what
    is shown already (it could not be completed, until a token was taken back), the first token that is not shown goes.
    """

    def __init__(self, decoder: Decoder, stop: Iterable[str] = (), banned: Iterable[str] = ()) -> None:
        self._decoder = decoder
        self._stops, self._bans = Texts(stop), Texts(banned)
        self._stop = self._banned = ""  # the longest ends that begin one
        self._held = ""
        self._marks: list[_Mark] = []

    @property
    def uncertain(self) -> int:
        """How many of the last tokens may yet be taken back."""
        return len(self._marks)

    def push(self, token: int, stops: bool = True) -> Found:
        """The next token's text; without `stops` a text that is complete with this token does not stop."""
        if not self._stops and not self._bans:
            return Found(self._decoder.push(token))
        self._mark()
        found = self._take(self._decoder.push(token), stops)
        if found.back:
            mark = self._marks[-found.back]
            del self._marks[-found.back :]
            self._decoder.restore(mark.decoder)
            self._held, self._stop, self._banned = self._held[: mark.at], mark.stop, mark.banned
        return found

    def finish(self, stops: bool = True) -> Found:
        """What is left, once no more tokens will come: what could have become a stop or a banned text is shown."""
        self._mark()
        found = self._take(self._decoder.finish(), stops)
        if found.stopped:
            return found
        rest = self._held[: self._marks[-found.back].at] if found.back else self._held
        self._held = ""
        self._marks.clear()
        return Found(found.text + rest)

    def _mark(self) -> None:
        if self._bans:
            self._marks.append(_Mark(len(self._held), self._decoder.state, self._stop, self._banned))

    def _take(self, text: str, stops: bool) -> Found:
        for char in text:
            self._held += char
            self._stop = self._stops.advance(self._stop, char)
            self._banned = self._bans.advance(self._banned, char)
            if stops and (lengths := self._stops.endings(self._stop)):
                shown, self._held = self._held[: -lengths[-1]], ""
                self._marks.clear()
                return Found(shown, stopped=True)
            if lengths := self._bans.endings(self._banned):
                return Found(back=len(self._marks) - self._bringer(len(self._held) - lengths[0]))
        return Found(self._release())

    def _bringer(self, at: int) -> int:
        """The token that brought character `at` of what is held back, or the first that can still be taken back."""
        return max((i for i, mark in enumerate(self._marks) if mark.at <= at), default=0)

    def _release(self) -> str:
        """What is certain now. Tokens are, up to the one in which a banned text may have begun."""
        n = len(self._held)
        certain = n - len(self._stop)
        if self._banned:
            del self._marks[: self._bringer(n - len(self._banned))]
            certain = min(
                certain, self._marks[0].at - len(self._marks[0].stop)
            )  # of all places to come back to, the first
            self._marks = [mark._replace(at=mark.at - certain) for mark in self._marks]
        else:
            self._marks.clear()
        shown, self._held = self._held[:certain], self._held[certain:]
        return shown
