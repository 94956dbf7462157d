"""SentencePiece's byte-pair merging ("llama"): the neighbours whose union scores highest merge first, the leftmost of equals.

A merge list cannot say this (equal scores, several ways to one token), so the `tokenizers` library cannot run it exactly.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable

from qtransformers.errors import TokenizerError
from qtransformers.load.vocab import BYTE, CONTROL, UNKNOWN, Vocab

SPACE = "\u2581"
_CACHED_LENGTH, _CACHED_WORDS = 64, 1 << 16


def spm_encoder(vocab: Vocab) -> Callable[[str], list[int]]:
    """A function from text (blanks escaped) to ids; text never becomes a control token, unknown characters become bytes."""
    mergeable = ~((vocab.types == CONTROL) | (vocab.types == UNKNOWN) | (vocab.types == BYTE))
    ids = {vocab.tokens[i]: i for i in mergeable.nonzero()[0].tolist()}
    scores = dict(zip(ids, vocab.scores[mergeable].tolist(), strict=True))
    byte_ids = [vocab.index.get(f"<0x{b:02X}>", vocab.index.get(chr(b)) if b < 128 else None) for b in range(256)]
    unknown = vocab.ids.get("unk")
    crosses = re.compile(f"[^{SPACE}]{SPACE}")
    words = (
        re.compile(f"{SPACE}*[^{SPACE}]*") if not any(crosses.search(t) for t in ids) else re.compile(".+", re.DOTALL)
    )
    cache: dict[str, list[int]] = {}

    def symbol_ids(symbol: str) -> list[int]:
        if symbol in ids:
            return [ids[symbol]]
        as_bytes = [byte_ids[b] for b in symbol.encode()]
        if all(i is not None for i in as_bytes):
            return [i for i in as_bytes if i is not None]
        if unknown is None:
            raise TokenizerError(
                f"{vocab.file}: {symbol!r} is not in the vocabulary, which has neither byte tokens nor an unknown token."
            )
        return [unknown]

    def encode(text: str) -> list[int]:
        out: list[int] = []
        for word in words.findall(text):
            known = cache.get(word)
            if known is None:
                known = [i for symbol in merge(word, scores) for i in symbol_ids(symbol)]
                if len(word) <= _CACHED_LENGTH:
                    if len(cache) >= _CACHED_WORDS:
                        cache.clear()
                    cache[word] = known
            out += known
        return out

    return encode


def merge(word: str, scores: dict[str, float]) -> list[str]:
    """The symbols that are left when no neighbours of `word` form a token any more; O(n log n)."""
    symbols = list(word)
    n = len(symbols)
    after = list(range(1, n + 1))  # n: none
    before = list(range(-1, n - 1))  # -1: none
    queue: list[tuple[float, int, int, int]] = []  # -score, left, right, length of the union

    def push(left: int, right: int) -> None:
        union = symbols[left] + symbols[right]
        score = scores.get(union)
        if score is not None:
            heapq.heappush(queue, (-score, left, right, len(union)))

    for i in range(n - 1):
        push(i, i + 1)
    while queue:
        _, left, right, length = heapq.heappop(queue)
        if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != length:
            continue  # one of them has merged since
        symbols[left] += symbols[right]
        symbols[right] = ""
        after[left] = after[right]
        if after[left] < n:
            before[after[left]] = left
            push(left, after[left])
        if before[left] >= 0:
            push(before[left], left)
    return [s for s in symbols if s]
