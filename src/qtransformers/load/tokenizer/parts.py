"""What a tokenizer is made of, whichever files it came from, and encoding around special tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qtransformers.load.tokenizer.specials import SpecialMatcher, Strip
from qtransformers.load.tokenizer.vocab import Vocab


@dataclass(frozen=True, eq=False)
class TokenizerParts:
    """How to encode, what each id stands for, what the model expects around a text."""

    vocab: Vocab
    encode: Callable[[str, bool], list[int]]  # text, whether texts of control tokens become those tokens
    piece: Callable[[int], bytes]  # what a token stands for in a text
    before: Sequence[int] = ()
    after: Sequence[int] = ()
    strip_space: bool = False  # a text's first blank is the tokenizer's own and goes away in decoding
    warnings: Sequence[str] = ()  # what the files left open, and how it was filled in


def around_specials(
    vocab: Vocab,
    encode: Callable[[str], list[int]],
    strip: Strip | None = None,
    *,
    first: Callable[[str], list[int]] | None = None,
    again: bool = True,
) -> Callable[[str, bool], list[int]]:
    """Encoding that cuts a text at its special tokens and encodes the pieces between.

    `first` encodes the piece that begins the text and, with `again`, each one behind a special token.
    """
    matchers: dict[bool, SpecialMatcher] = {}
    first = first or encode

    def encode_all(text: str, encode_special: bool) -> list[int]:
        matcher = matchers.get(encode_special)
        if matcher is None:
            ids = vocab.user_ids | vocab.control_ids if encode_special else vocab.user_ids
            matcher = matchers[encode_special] = SpecialMatcher(vocab.tokens, ids, strip)
        out: list[int] = []
        begins = True
        for piece in matcher.split(text):
            if isinstance(piece, int):
                out.append(piece)
            else:
                out += first(piece) if begins else encode(piece)
            begins = again and isinstance(piece, int)
        return out

    return encode_all
