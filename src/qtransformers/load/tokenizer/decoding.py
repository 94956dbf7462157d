"""From token ids back to text: the bytes each token stands for, and whole UTF-8 characters as they arrive."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Any

from qtransformers.load.tokenizer.bpe import SPACE, byte_alphabet
from qtransformers.load.tokenizer.vocab import BYTE, UNUSED, Vocab

_BYTE_NAME = re.compile("<0x([0-9A-Fa-f]{2})>")


def piece_decoder(
    vocab: Vocab, *, byte_level: bool, escaped: bool, word_prefix: str = "", word_suffix: str = ""
) -> Callable[[int], bytes]:
    """A function from id to the bytes of the token; control tokens give their text, unused ones nothing.

    word_prefix ("##") marks pieces that go on a word, word_suffix ("</w>") those that end one.
    """
    alphabet = {c: b for b, c in byte_alphabet().items()}
    cache: dict[int, bytes] = {}

    def decode(i: int) -> bytes:
        text = vocab.tokens[i]
        if i in vocab.control_ids or i in vocab.user_ids:
            text = " " + text if word_prefix else text
            return text.encode("utf-8", "surrogateescape")
        if vocab.types[i] == UNUSED:
            return b""
        if vocab.types[i] == BYTE and (name := _BYTE_NAME.fullmatch(text)):
            return bytes.fromhex(name[1])
        if byte_level:
            return b"".join(
                bytes([alphabet[c]]) if c in alphabet else c.encode("utf-8", "surrogateescape") for c in text
            )
        if word_prefix:
            text = text[len(word_prefix) :] if text.startswith(word_prefix) else " " + text
        if word_suffix and text.endswith(word_suffix):
            text = text[: -len(word_suffix)] + " "
        if escaped:
            text = text.replace(SPACE, " ")
        return text.encode("utf-8", "surrogateescape")

    def cached(i: int) -> bytes:
        piece = cache.get(i)
        if piece is None:
            piece = cache[i] = decode(i)
        return piece

    return cached


class StreamDecoder:
    """Text as its tokens arrive: `push(id)` gives the whole characters there are, `finish()` what is left."""

    def __init__(self, piece: Callable[[int], bytes], strip_space: bool, skip: int = 0) -> None:
        self._piece = piece
        self._strip_space = strip_space
        self._skip = skip  # bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that `token` completes; "" while one is still partial."""
        return self._utf8.decode(self._next(token))

    def finish(self) -> str:
        """What is left at the end: "" or U+FFFD for a character that was never completed."""
        return self._utf8.decode(b"", True)

    @property
    def state(self) -> Any:
        """What `restore` needs to come back to this point."""
        return self._strip_space, self._skip, self._utf8.getstate()

    def restore(self, state: Any) -> None:
        """Forget what was pushed since `state`."""
        self._strip_space, self._skip, utf8 = state
        self._utf8.setstate(utf8)

    def _next(self, token: int) -> bytes:
        piece = self._piece(token)
        if self._strip_space and piece:
            self._strip_space = False
            piece = piece.removeprefix(b" ")
        if self._skip:
            piece, self._skip = piece[self._skip :], max(0, self._skip - len(piece))
        return piece
