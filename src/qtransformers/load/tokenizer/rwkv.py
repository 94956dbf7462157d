"""RWKV's vocabulary ("rwkv"): the longest token at each byte, over tokens that are byte strings written with escapes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer.vocab import CONTROL, UNKNOWN, Vocab

_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_NAMED = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}


def unescape(text: str) -> bytes:
    r"""The bytes of a token written with \t, \n, \r, \xHH and \ before any other character."""

    def value(match: re.Match[bytes]) -> bytes:
        body = match[1]
        return bytes([int(body[1:], 16)]) if len(body) == 3 else _NAMED.get(body, body)

    return _ESCAPE.sub(value, text.encode("utf-8", "surrogateescape"))


def rwkv_encoder(vocab: Vocab) -> Callable[[str], list[int]]:
    """A function from text to ids; TokenizerError for a byte that no token begins with."""
    text_tokens = ~((vocab.types == CONTROL) | (vocab.types == UNKNOWN))
    ids = {unescape(vocab.tokens[i]): i for i in text_tokens.nonzero()[0].tolist()}
    lengths: dict[bytes, set[int]] = defaultdict(set)
    for token in ids:
        lengths[token[:2]].add(len(token))
    by_head = {head: sorted(found, reverse=True) for head, found in lengths.items()}

    def encode(text: str) -> list[int]:
        raw = text.encode()
        out: list[int] = []
        at = 0
        while at < len(raw):
            for n in (*by_head.get(raw[at : at + 2], ()), 1):
                i = ids.get(raw[at : at + n])
                if i is not None:
                    out.append(i)
                    at += n
                    break
            else:
                raise TokenizerError(
                    f"{vocab.file}: no token begins with the byte 0x{raw[at]:02x}. The vocabulary is incomplete: convert the file again."
                )
        return out

    return encode
