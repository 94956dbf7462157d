"""PLaMo-2's vocabulary ("plamo2"): the segmentation with the highest sum of scores, found from the end of the text.

Scores count in steps of 1e-4; a character that no token covers costs 1000 and becomes its bytes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer.vocab import BYTE, CONTROL, UNKNOWN, Vocab

UNKNOWN_COST = 10_000_000
WORST_COST = 20_000_000  # tokens that cost as much never count


def plamo_encoder(vocab: Vocab) -> Callable[[str], list[int]]:
    """A function from text to ids; TokenizerError where a byte token is missing. A leading U+FEFF is dropped."""
    byte_ids = [vocab.index.get(f"<0x{b:02X}>") for b in range(256)]
    if None in byte_ids:
        raise TokenizerError(
            f"{vocab.file}: token <0x{byte_ids.index(None):02X}> is missing; expected one for each byte. Convert the file again."
        )
    text_tokens = ~((vocab.types == CONTROL) | (vocab.types == UNKNOWN) | (vocab.types == BYTE))
    costs: dict[str, tuple[int, int]] = {}  # token -> cost, id
    lengths: dict[str, set[int]] = defaultdict(set)
    for i in text_tokens.nonzero()[0].tolist():
        score = float(vocab.scores[i]) * 1e4
        if math.isfinite(score) and (cost := -_rounded(score)) < WORST_COST:
            costs[vocab.tokens[i]] = cost, i
            lengths[vocab.tokens[i][:2]].add(len(vocab.tokens[i]))
    longest_first = {head: sorted(found, reverse=True) for head, found in lengths.items()}

    def encode(text: str) -> list[int]:
        text = text.removeprefix("\ufeff")
        n = len(text)
        best = [0] * (n + 1)  # cost of the text from there on
        step: list[tuple[int, int]] = [(1, -1)] * n  # length of the token there, its id (-1: bytes)
        for at in range(n - 1, -1, -1):
            cheapest, chosen = math.inf, (1, -1)
            for length in (*longest_first.get(text[at : at + 2], ()), 1):
                found = costs.get(text[at : at + length])
                if found is not None and at + length <= n and (cost := best[at + length] + found[0]) < cheapest:
                    cheapest, chosen = cost, (length, found[1])
            if best[at + 1] + UNKNOWN_COST < cheapest:
                cheapest, chosen = best[at + 1] + UNKNOWN_COST, (1, -1)
            best[at], step[at] = int(cheapest), chosen
        out: list[int] = []
        at = 0
        while at < n:
            length, i = step[at]
            out += [i] if i >= 0 else [b for c in text[at].encode() if (b := byte_ids[c]) is not None]
            at += length
        return out

    return encode


def _rounded(x: float) -> int:
    """To the nearest whole number, halves away from zero."""
    return int(math.copysign(math.floor(abs(x) + 0.5), x))
