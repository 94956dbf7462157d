"""Token healing: a prompt may end where the tokenizer would not have cut, had it seen what follows.

Its last tokens are taken back, and the answer begins with any tokens that spell their text again: `http` `:` may become
`http` `://`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

MAX_TAKEN_BACK = 8  # tokens


class Pieces:
    """The tokens of a vocabulary by the bytes `pieces[id]` they stand for; those that stand for none are left out."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        order = sorted((i for i, piece in enumerate(pieces) if piece), key=pieces.__getitem__)
        self._sorted = [pieces[i] for i in order]
        self._ids = np.array(order, np.int64)

    def __getitem__(self, token: int) -> bytes:
        return self._pieces[token]

    def goes_on(self, text: bytes) -> bool:
        """Whether a token begins with `text` and is longer."""
        begin, end = self._beginning_with(text)
        return begin < end and self._sorted[end - 1] != text

    def spelling(self, text: bytes) -> NDArray[np.int64]:
        """Ids of the tokens that begin with `text`, or that it begins with."""
        found = [self._ids[slice(*self._beginning_with(text))]]
        for n in range(1, len(text)):
            found.append(self._ids[bisect_left(self._sorted, text[:n]) : bisect_right(self._sorted, text[:n])])
        return np.concatenate(found)

    def _beginning_with(self, text: bytes) -> tuple[int, int]:
        def head(piece: bytes) -> bytes:
            return piece[: len(text)]

        return bisect_left(self._sorted, text, key=head), bisect_right(self._sorted, text, key=head)


@dataclass(frozen=True, eq=False)
class Healing:
    """The bytes that the first tokens of an answer must spell, the last of them perhaps going on."""

    text: bytes
    pieces: Pieces

    def allowed(self, tokens: Sequence[int], n_prompt: int) -> NDArray[np.int64] | None:
        """Ids that may come after `tokens`, the first `n_prompt` of them the prompt's; None once the text is spelled: any may."""
        answer = tokens[n_prompt : n_prompt + len(self.text)]  # more than enough: each has a byte at least
        spelled = sum(len(self.pieces[token]) for token in answer)
        return self.pieces.spelling(self.text[spelled:]) if spelled < len(self.text) else None


class Vocabulary(Protocol):
    """What healing needs to know about a tokenizer."""

    special_ids: frozenset[int]

    @property
    def pieces(self) -> Pieces:
        """Its tokens by their bytes."""


def take_back(ids: tuple[int, ...], tokenizer: Vocabulary) -> tuple[tuple[int, ...], Healing | None]:
    """A prompt without the most of its last tokens that together begin a longer one, and how to go on; None where there are none.

    Control tokens stay, and so does at least one token.
    """
    pieces, best, tail = tokenizer.pieces, 0, b""
    for n in range(1, min(MAX_TAKEN_BACK, len(ids) - 1) + 1):
        piece = pieces[ids[-n]]
        if ids[-n] in tokenizer.special_ids or not piece:
            break
        tail = piece + tail
        if pieces.goes_on(tail):
            best = n
    if not best:
        return ids, None
    return ids[:-best], Healing(b"".join(pieces[i] for i in ids[-best:]), pieces)


def pieces_of(n_tokens: int, piece: Callable[[int], bytes], without: frozenset[int]) -> Pieces:
    """The tokens of a vocabulary but those of `without`."""
    return Pieces([b"" if i in without else piece(i) for i in range(n_tokens)])
