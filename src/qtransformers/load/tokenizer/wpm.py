"""WordPiece ("bert"): words found by the longest tokens from left to right; a word that cannot be is one unknown token.

Normalisation is that of llama.cpp, which differs from BERT's own for some scripts: accents are stripped by keeping the
first character of the decomposition. The `tokenizers` library cannot do that, and gives up words of over 100 characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer.vocab import CONTROL, UNKNOWN, Vocab

SPACE = "\u2581"
# is_chinese_char of BERT's tokenizer, with its one misprint (0x2B920), which every port has kept.
_CJK = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
_CACHED_WORDS = 1 << 16


def wpm_encoder(vocab: Vocab, *, lowercase: bool, strip_accents: bool) -> Callable[[str], list[int]]:
    """A function from text to ids; TokenizerError where the vocabulary names no unknown token."""
    text_tokens = ~((vocab.types == CONTROL) | (vocab.types == UNKNOWN))
    ids = {vocab.tokens[i]: i for i in text_tokens.nonzero()[0].tolist()}
    longest = max(map(len, ids), default=0)
    unknown = vocab.ids.get("unk")
    if unknown is None:
        raise TokenizerError(f"{vocab.file}: a WordPiece vocabulary without unknown_token_id. Name the id of [UNK].")
    table = _Characters(lowercase, strip_accents)
    cache: dict[str, list[int]] = {}

    def encode(text: str) -> list[int]:
        out: list[int] = []
        for word in text.translate(table).split(" "):
            if not word:
                continue
            known = cache.get(word)
            if known is None:
                known = pieces(SPACE + word, ids, longest) or [unknown]
                if len(cache) >= _CACHED_WORDS:
                    cache.clear()
                if len(word) <= longest:
                    cache[word] = known
            out += known
        return out

    return encode


def pieces(word: str, ids: dict[str, int], longest: int) -> list[int]:
    """The ids of the longest tokens that make up `word`, from left to right; [] where they do not."""
    out: list[int] = []
    at = 0
    while at < len(word):
        for end in range(min(len(word), at + longest), at, -1):
            i = ids.get(word[at:end])
            if i is not None:
                out.append(i)
                at = end
                break
        else:
            return []
    return out


class _Characters(dict[int, Any]):
    """What becomes of each character, for `str.translate`: words are left with single blanks around them."""

    def __init__(self, lowercase: bool, strip_accents: bool) -> None:
        super().__init__()
        self._lowercase = lowercase
        self._strip_accents = strip_accents

    def __missing__(self, code: int) -> str:
        self[code] = out = self._normalise(chr(code))
        return out

    def _normalise(self, c: str) -> str:
        if self._strip_accents:
            c = unicodedata.normalize("NFD", c)[0]
        category = unicodedata.category(c)
        if c.isspace() and not "\x1c" <= c <= "\x1f":
            return " "
        if c in "\0\ufffd" or category in ("Cc", "Cf", "Co"):
            return ""
        if self._strip_accents and category[0] == "M":
            return ""
        lower = simple_lower(c) if self._lowercase else c
        alone = category[0] == "P" or (category[0] == "S" and c < "\x7f") or any(a <= ord(c) <= b for a, b in _CJK)
        return f" {lower} " if alone else lower


def simple_lower(c: str) -> str:
    """The one-character lower case of a character, as Unicode's simple mapping has it."""
    return c.lower()[0]
