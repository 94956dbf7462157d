"""SentencePiece's byte-pair merging ("llama"): the neighbours whose union scores highest merge first, the leftmost of equals.

A merge list cannot say this (equal scores, several ways to one token), so the `tokenizers` library cannot run it exactly.
"""

from __future__ import annotations

import heapq
import operator
import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer.vocab import BYTE, CONTROL, UNKNOWN, Vocab

SPACE = "\u2581"
_CACHED_LENGTH, _CACHED_WORDS = 64, 1 << 16


def spm_encoder(vocab: Vocab) -> Callable[[str], list[int]]:
    """A function from text (blanks escaped) to ids; text never becomes a control token, unknown characters become bytes."""
    mergeable = ~((vocab.types == CONTROL) | (vocab.types == UNKNOWN) | (vocab.types == BYTE))
    ids = {vocab.tokens[i]: i for i in mergeable.nonzero()[0].tolist()}
    ranks = dict(zip(ids, _ranks(vocab.scores[mergeable]).tolist(), strict=True))
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
                known = [i for symbol in merge(word, ranks) for i in symbol_ids(symbol)]
                if len(word) <= _CACHED_LENGTH:
                    if len(cache) >= _CACHED_WORDS:
                        cache.clear()
                    cache[word] = known
            out += known
        return out

    return encode


def merge(word: str, ranks: dict[str, int]) -> list[str]:
    """The symbols that are left when no neighbours of `word` form a token any more; O(n log n).

    The queue holds rank, place of the left neighbour and length of the union in one number: its order is theirs.
    """
    symbols = list(word)
    n = len(symbols)
    after = list(range(1, n + 1))  # n: none
    before = list(range(-1, n - 1))  # -1: none
    pairs = map(ranks.get, map(operator.add, symbols, symbols[1:]))
    queue = [rank << 64 | left << 32 | 2 for left, rank in enumerate(pairs) if rank is not None]
    heapq.heapify(queue)
    while queue:
        entry = heapq.heappop(queue)
        left = entry >> 32 & 0xFFFFFFFF
        right = after[left]
        union = symbols[left]
        if not union or right == n or len(union) + len(symbols[right]) != entry & 0xFFFFFFFF:
            continue  # one of them has merged since
        symbols[left] = union = union + symbols[right]
        symbols[right] = ""
        after[left] = following = after[right]
        if following < n:
            before[following] = left
            longer = union + symbols[following]
            rank = ranks.get(longer)
            if rank is not None:
                heapq.heappush(queue, rank << 64 | left << 32 | len(longer))
        previous = before[left]
        if previous >= 0:
            longer = symbols[previous] + union
            rank = ranks.get(longer)
            if rank is not None:
                heapq.heappush(queue, rank << 64 | previous << 32 | len(longer))
    return [s for s in symbols if s]


def _ranks(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """0 for the highest score, 1 for the next; equal scores are equal in rank."""
    return np.unique(-scores, return_inverse=True)[1].reshape(-1)
