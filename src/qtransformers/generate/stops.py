"""Stop texts in a stream: nothing is shown that may turn out to be the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Text in, text that is safe to show out; `found` once a stop text has come."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What may be shown now: all before a stop text, or all that cannot be the beginning of one."""
        if self.found or not text:
            return ""
        text = self._held + text
        places = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops if stop in text]
        if places:  # the one complete first counts, so that it does not matter how the text came in pieces
            self.found = True
            self._held = ""
            return text[: min(places)[1]]
        n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def rest(self) -> str:
        """What is held back, once no more text will come."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
